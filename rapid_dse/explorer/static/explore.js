"use strict";
// The page's own script: the picture of a study's rows with its lasso, keys, and two rows that are pinned.
(() => {
  const $ = (query, inside = document) => inside.querySelector(query);
  const say = (text) => { const at = $("#said"); if (at) at.textContent = text; };
  const filters = () => $("#filters");
  const queryOf = (more = {}) => new URLSearchParams([...[...new FormData(filters())].filter(([, value]) => value !== ""), ...Object.entries(more)]);

  // --- rows by keys
  const rows = () => [...document.querySelectorAll("table.moving tbody tr")];
  let current = -1, currentKey = "";
  const moveTo = (at) => {
    const all = rows();
    if (!all.length) return;
    all.forEach((row) => row.classList.remove("current"));
    current = Math.max(0, Math.min(all.length - 1, at));
    const row = all[current];
    row.classList.add("current");
    currentKey = row.dataset.key || "";
    row.scrollIntoView({ block: "nearest" });
    const link = $("a.opens", row);
    if (link) link.focus({ preventScroll: true });
    say(`row ${current + 1} of ${all.length}: ${row.dataset.name || row.innerText.replace(/\s+/g, " ")}${row.classList.contains("pinned") ? ", pinned" : ""}`);
  };
  const show = (key) => htmx.ajax("GET", `/row?${new URLSearchParams({ study: study(), key })}`, { target: "#detail", swap: "innerHTML" });
  const study = () => $("#filters [name=study]").value;

  // --- a study that takes seconds to read says so
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-rows]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    setTimeout(() => {
      $("#opening p").textContent = `Reading the ${link.dataset.rows} rows of ${link.innerText}. The first time takes about 2 s a million.`;
      $("#opening").hidden = false;
      say($("#opening p").textContent);
    }, 200);
  });
  addEventListener("pageshow", () => { if ($("#opening")) $("#opening").hidden = true; });

  // --- pins
  let pins = [];
  const pinsKept = () => `pins ${study()}`;
  const showPins = () => {
    if (!$("#pins")) return;
    $("#pins").hidden = !pins.length;
    $("#pinned").textContent = pins.map(([, name], at) => `${"AB"[at]}: ${name}`).join("; ");
    $("#compare").disabled = pins.length < 2;
    rows().forEach((row) => row.classList.toggle("pinned", pins.some(([key]) => key === row.dataset.key)));
    sessionStorage.setItem(pinsKept(), JSON.stringify(pins));
  };
  const pin = (key, name) => {
    if (!key) return say("this row has no key");
    const there = pins.findIndex(([each]) => each === key);
    if (there >= 0) pins.splice(there, 1);
    else pins = [...pins.slice(-1), [key, name]];
    showPins();
    say(`${there >= 0 ? "unpinned" : "pinned"}: ${name}; ${pins.length} pinned`);
  };
  const compare = () => {
    if (pins.length < 2) return say("pin two rows first: space");
    const query = new URLSearchParams({ study: study(), a: pins[0][0], b: pins[1][0] });
    htmx.ajax("GET", `/difference?${query}`, { target: "#more", swap: "innerHTML" }).then(() => { $("#more").scrollIntoView({ block: "start" }); say("difference of two rows"); });
  };

  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input, textarea, select");
    if (event.key === "Escape" && typing) return event.target.blur();
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/" && $("#q")) { event.preventDefault(); $("#q").focus(); $("#q").select(); }
    else if (event.key === "j") moveTo(current + 1);
    else if (event.key === "k") moveTo(current - 1);
    else if (event.key === " " && !event.target.matches("button, summary") && $("#pins") && rows()[current]) { event.preventDefault(); const row = rows()[current]; pin(row.dataset.key, row.dataset.name); }
    else if (event.key === "d" && $("#pins")) compare();
  });
  document.addEventListener("click", (event) => {
    const row = event.target.closest("table.moving tbody tr");
    if (row && $("#detail") && row.dataset.key && !(event.ctrlKey || event.metaKey || event.shiftKey)) {
      event.preventDefault();
      moveTo(rows().indexOf(row));
      show(row.dataset.key);
    }
    if (event.target.matches("button.pin")) {
      if ($("#pins")) pin(event.target.dataset.key, event.target.dataset.name);
      else location.href = $(".back").href;
    }
    if (event.target.closest("#compare")) compare();
    if (event.target.closest("#unpin")) { pins = []; showPins(); }
    if (event.target.closest("#unlasso")) { $("#lasso").value = ""; htmx.trigger(filters(), "outlined"); }
  });
  document.addEventListener("change", (event) => {
    if (!event.target.matches("select.choice")) return;
    const { group } = event.target.dataset, name = group.replace("+", ""), text = $("#overrides");
    const rest = text.value.replace(new RegExp(`(^|\\s)\\+?${name}=\\S+`, "g"), "").trim();
    text.value = [event.target.value && `${group}=${event.target.value}`, rest].filter(Boolean).join(" ");
  });

  // --- the picture
  let drawn = null, loading = "";
  const draw = async () => {
    const at = $("#counted");
    if (!at || !$("#cloud")) return;
    $("#unlasso").hidden = !$("#lasso").value;
    const address = at.dataset.points;
    if (address === loading) return drawn && drawn.outline($("#lasso").value);
    loading = address;
    const answer = await fetch(address);
    if (!answer.ok || loading !== address) return;
    const data = RapidCloud.decoded(await answer.arrayBuffer());
    if (drawn) drawn.destroy();
    drawn = RapidCloud.draw($("#cloud"), data, {
      say,
      spot: (x, y) => htmx.ajax("GET", `/nearest?${queryOf({ at_x: x, at_y: y })}`, { target: "#detail", swap: "innerHTML" }),
      lasso: (corners) => { $("#lasso").value = corners.map(([x, y]) => `${x},${y}`).join(";"); htmx.trigger(filters(), "outlined"); },
    });
    drawn.outline($("#lasso").value);
    $("#cloud").dataset.points = data.header.points;
  };
  document.addEventListener("htmx:afterSwap", (event) => {
    if (event.detail.target.id === "found") {
      current = currentKey ? rows().findIndex((row) => row.dataset.key === currentKey) : -1;
      showPins();
      draw();
      if (current >= 0 && document.activeElement === document.body) moveTo(current);
      else say($("#counted") ? $("#counted").innerText : event.detail.target.innerText);
    }
    if (event.detail.target.id === "detail") say(`shown: ${($("h2", event.detail.target) || event.detail.target).innerText}`);
    RapidPictures.ready(event.detail.target);
  });
  document.addEventListener("DOMContentLoaded", () => {
    if (filters()) { pins = JSON.parse(sessionStorage.getItem(pinsKept()) || "[]"); showPins(); draw(); }
    document.documentElement.dataset.ready = "true";
  });
})();
