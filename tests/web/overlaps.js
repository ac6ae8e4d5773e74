(/* What overlaps, is cut, or is wider than the window: a list of sentences. */
() => {
  const found = [], root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) found.push(`wider than the window: ${root.scrollWidth} > ${root.clientWidth}`);
  const shown = (e) => e.checkVisibility({ visibilityProperty: true }) && !e.closest(".unseen");
  const boxOf = (e) => {
    const range = document.createRange();
    range.selectNodeContents(e);
    return e.matches("input, select, textarea, button, progress") ? e.getBoundingClientRect() : range.getBoundingClientRect();
  };
  const nameOf = (e) => (e.innerText || e.textContent || e.name || "").slice(0, 40);
  const meet = (a, b, slack) =>
    a.left < b.right - slack && b.left < a.right - slack && a.top < b.bottom - slack && b.top < a.bottom - slack;
  const pairs = (elements, slack, what) => {
    const boxes = elements.map((e) => [e, boxOf(e)]).filter(([, box]) => box.width > 1 && box.height > 1);
    boxes.sort((a, b) => a[1].top - b[1].top);
    boxes.forEach(([e, box], i) => {
      for (let j = i + 1; j < boxes.length && boxes[j][1].top < box.bottom; j++) {
        const [other, its] = boxes[j];
        const apart = !e.contains(other) && !other.contains(e);
        if (apart && meet(box, its, slack)) found.push(`${what}: "${nameOf(e)}" on "${nameOf(other)}"`);
      }
    });
  };
  const kinds = "h1, h2, h3, p, dt, dd, li, label, input:not([type=hidden]), select, textarea, button, pre, figure, table, progress, summary";
  const scrolled = (e) => e.parentElement.closest("#detail, pre, .wide") !== null;  // what scrolls lies in its own frame
  pairs([...document.querySelectorAll(kinds)].filter((e) => shown(e) && !e.closest(".uplot") && !scrolled(e)), 2, "page");
  for (const table of document.querySelectorAll("table")) if (shown(table)) pairs([...table.querySelectorAll("td, th")], 1, "table");
  const pen = document.createElement("canvas").getContext("2d");
  for (const select of document.querySelectorAll("select")) {
    const chosen = select.selectedOptions[0]?.text ?? "", room = select.clientWidth - 40;  // paddings and the arrow
    pen.font = getComputedStyle(select).font;
    if (shown(select) && pen.measureText(chosen).width > room) found.push(`cut: "${chosen}", which is chosen of ${select.name}`);
  }
  for (const svg of document.querySelectorAll("svg")) {
    if (!shown(svg)) continue;
    const frame = svg.getBoundingClientRect(), texts = [...svg.querySelectorAll("text")], title = svg.querySelector("title")?.textContent;
    for (const text of texts) {
      const box = text.getBoundingClientRect();
      const inside = box.left >= frame.left - 1 && box.right <= frame.right + 1 && box.top >= frame.top - 1 && box.bottom <= frame.bottom + 1;
      if (!inside) found.push(`cut: "${text.textContent}" of ${title}`);
    }
    pairs(texts, 2, title);
  }
  return found;
})
