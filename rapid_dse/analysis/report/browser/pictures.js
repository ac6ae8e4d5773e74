"use strict";
// Pictures by keys: in a figure that has the focus, arrows go from mark to mark, and what a mark says is read out and shown below it.
const RapidPictures = (() => {
  const marksOf = (svg) => [...svg.querySelectorAll("rect, circle")].filter((mark) => mark.querySelector(":scope > title"));
  const ready = (root = document) => {
    for (const figure of root.querySelectorAll("figure.wide")) {
      const svg = figure.querySelector("svg"), marks = svg ? marksOf(svg) : [];
      if (!marks.length || figure.dataset.ready) continue;
      figure.dataset.ready = "true";
      const line = document.createElement("p");
      line.className = "reading";
      line.setAttribute("aria-live", "polite");
      line.textContent = "Arrow keys go through the picture.";
      figure.after(line);
      let at = -1;
      const go = (to) => {
        marks.forEach((mark) => mark.classList.remove("read"));
        at = (to + marks.length) % marks.length;
        marks[at].classList.add("read");
        marks[at].scrollIntoView({ block: "nearest", inline: "nearest" });
        line.textContent = `${marks[at].querySelector("title").textContent} (${at + 1} of ${marks.length})`;
      };
      const top = (mark) => Number(mark.getAttribute("y") || mark.getAttribute("cy"));
      const across = (mark) => Number(mark.getAttribute("x") || mark.getAttribute("cx"));
      const nextLine = (step) => {
        if (at < 0) return 0;
        const others = marks.map((mark, index) => [mark, index]).filter(([mark]) => step * (top(mark) - top(marks[at])) > 1);
        if (!others.length) return at;
        others.sort((a, b) => step * (top(a[0]) - top(b[0])) || Math.abs(across(a[0]) - across(marks[at])) - Math.abs(across(b[0]) - across(marks[at])));
        return others[0][1];
      };
      figure.addEventListener("keydown", (event) => {
        const to = { ArrowRight: () => at + 1, ArrowLeft: () => at - (at < 0 ? 0 : 1), ArrowDown: () => nextLine(1), ArrowUp: () => nextLine(-1), Home: () => 0, End: () => marks.length - 1 }[event.key];
        if (!to || event.target !== figure) return;
        event.preventDefault();
        go(to());
      });
      figure.addEventListener("click", (event) => { const index = marks.indexOf(event.target.closest("rect, circle")); if (index >= 0) go(index); });
    }
  };
  document.addEventListener("DOMContentLoaded", () => ready());
  return { ready };
})();
