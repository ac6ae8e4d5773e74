"use strict";
// All rows of the page: unpacks them, draws any two columns, shows a row that is clicked and lists those inside a lasso.
(() => {
  const LISTED = 20;
  const bytesOf = (text) => {
    const raw = atob(text), found = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) found[i] = raw.charCodeAt(i);
    return found;
  };
  const unpacked = async (text) => {
    const stream = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
    const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
    const size = new DataView(bytes.buffer).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + size)));
    let at = 4 + size;
    for (const column of header.columns) {
      const width = { codes: column.width, floats: 4, hex: column.digits / 2 }[column.kind];
      column.bytes = bytes.subarray(at, at + width * header.rows);
      at += width * header.rows;
    }
    header.of = Object.fromEntries(header.columns.map((column) => [column.name, column]));
    return header;
  };
  // a column's values, row by row; bytes lie by place
  const code = (column, rows, row) => (column.width === 1 ? column.bytes[row] : column.bytes[row] + 256 * column.bytes[rows + row]);
  const floats = (column, rows) => {
    if (column.floats) return column.floats;
    if (column.kind === "codes") {
      const values = Float32Array.from(column.values, (value) => (value === null || typeof value === "string" ? NaN : Number(value)));
      column.floats = Float32Array.from({ length: rows }, (_, row) => values[code(column, rows, row)]);
    } else {
      const mixed = new Uint8Array(4 * rows);
      for (let place = 0; place < 4; place++) for (let row = 0; row < rows; row++) mixed[4 * row + place] = column.bytes[place * rows + row];
      column.floats = new Float32Array(mixed.buffer);
    }
    return column.floats;
  };
  const valueOf = (column, rows, row) => {
    if (column.kind === "codes") return column.values[code(column, rows, row)];
    if (column.kind === "hex") return Array.from(column.bytes.subarray((row * column.digits) / 2, ((row + 1) * column.digits) / 2), (byte) => byte.toString(16).padStart(2, "0")).join("");
    return floats(column, rows)[row];
  };
  const text = (value) => (typeof value === "number" ? String(Number(value.toPrecision(6))) : String(value));

  const front = (xs, ys, fits, less) => {
    const rows = [];
    for (let i = 0; i < xs.length; i++) if (fits[i] && Number.isFinite(xs[i]) && Number.isFinite(ys[i])) rows.push(i);
    rows.sort((a, b) => less[0] * (xs[a] - xs[b]) || less[1] * (ys[a] - ys[b]));
    let least = Infinity;
    return rows.filter((row) => { const value = less[1] * ys[row]; if (value < least) { least = value; return true; } return false; });
  };
  const dataOf = (header, names) => {
    const [xs, ys] = names.map((name) => floats(header.of[name], header.rows)), fits = floats(header.of.fits, header.rows);
    const shown = [], ends = [[Infinity, -Infinity], [Infinity, -Infinity]];
    for (let row = 0; row < header.rows; row++) {
      if (!Number.isFinite(xs[row]) || !Number.isFinite(ys[row])) continue;
      shown.push(row);
      [xs[row], ys[row]].forEach((value, at) => { ends[at][0] = Math.min(ends[at][0], value); ends[at][1] = Math.max(ends[at][1], value); });
    }
    if (!shown.length) return null;
    const best = front(xs, ys, fits, names.map((name) => (header.more.includes(name) ? -1 : 1)));
    const logarithmic = ends.map(([low, high]) => low > 0 && high > 8 * low);
    // rows of one kind on one pixel are one point
    const place = (value, at) => { const [low, high] = logarithmic[at] ? ends[at].map(Math.log) : ends[at]; return ((logarithmic[at] ? Math.log(value) : value) - low) / (high - low || 1); };
    const wide = 1000, high = 700, seen = new Uint8Array(2 * wide * high), rows = [], kind = [];
    for (const row of shown) {
      const fit = fits[row] === 1 ? 1 : 0;
      const pixel = (fit * high + Math.round(place(ys[row], 1) * (high - 1))) * wide + Math.round(place(xs[row], 0) * (wide - 1));
      if (!seen[pixel]) { seen[pixel] = 1; rows.push(row); kind.push(fit); }
    }
    rows.push(...best);
    kind.push(...best.map(() => 2));
    return {
      header: { points: rows.length, rows: shown.length, kinds: ["does not fit", "fits", "front"], names, ends, logarithmic,
        titles: names.map((name) => header.axes[name].title), units: names.map((name) => header.axes[name].unit) },
      x: Float32Array.from(rows, (row) => xs[row]), y: Float32Array.from(rows, (row) => ys[row]), kind: Uint8Array.from(kind), rows,
    };
  };
  const inside = (corners, x, y, logarithmic) => {
    const at = (value, axis) => (logarithmic[axis] ? Math.log(value) : value);
    const px = at(x, 0), py = at(y, 1);
    let odd = false;
    corners.forEach(([ax, ay], i) => {
      const [bx, by] = corners[(i + 1) % corners.length].map(at), [cx, cy] = [at(ax, 0), at(ay, 1)];
      if (py < cy !== py < by && px < cx + ((py - cy) * (bx - cx)) / (by - cy)) odd = !odd;
    });
    return odd;
  };
  const element = (tag, content, parent) => { const found = document.createElement(tag); if (content !== undefined) found.textContent = content; if (parent) parent.append(found); return found; };

  const start = async () => {
    const packed = document.getElementById("packed-rows"), place = document.getElementById("all-rows");
    if (!packed || typeof DecompressionStream === "undefined") return;
    const header = await unpacked(packed.textContent);
    const [across, up, cloud, answer] = ["all-x", "all-y", "all-cloud", "all-answer"].map((id) => document.getElementById(id));
    for (const [select, usual] of [[across, "step_time_s"], [up, "peak_memory_bytes"]]) {
      for (const name of Object.keys(header.axes)) if (header.of[name]) element("option", name, select).selected = name === usual;
    }
    place.hidden = false;
    const show = (row) => {
      const list = element("dl");
      list.className = "card";
      for (const column of header.columns) {
        const value = valueOf(column, header.rows, row);
        if (value === null || Number.isNaN(value)) continue;
        const part = element("div", undefined, list);
        element("dt", column.name, part);
        element("dd", text(value), part);
      }
      answer.replaceChildren(list);
    };
    const list = (corners, data, names) => {
      const [xs, ys] = names.map((name) => floats(header.of[name], header.rows)), time = floats(header.of.step_time_s, header.rows);
      const rows = [];
      for (let row = 0; row < header.rows; row++) if (Number.isFinite(xs[row]) && Number.isFinite(ys[row]) && inside(corners, xs[row], ys[row], data.header.logarithmic)) rows.push(row);
      rows.sort((a, b) => time[a] - time[b]);
      const first = rows.slice(0, LISTED), columns = [...new Set(["key", ...header.layout, "status", "step_time_s", "peak_memory_bytes", ...names])].filter((name) => header.of[name]);
      const frame = element("div"), table = element("table", undefined, frame), head = element("tr", undefined, element("thead", undefined, table)), body = element("tbody");
      frame.className = "wide";
      frame.tabIndex = 0;
      frame.setAttribute("role", "region");
      frame.setAttribute("aria-label", "Rows inside the lasso");
      columns.forEach((name) => { element("th", name.replace("parallel.", ""), head).scope = "col"; });
      table.append(body);
      for (const row of first) { const line = element("tr", undefined, body); columns.forEach((name) => { const value = valueOf(header.of[name], header.rows, row); element("td", value === null || Number.isNaN(value) ? "" : text(value), line); }); }
      answer.replaceChildren(element("p", `${rows.length.toLocaleString("en")} rows inside the lasso${rows.length > LISTED ? `, the ${LISTED} fastest of them` : ""}:`), frame);
    };
    let drawn = null;
    const draw = () => {
      const names = [across.value, up.value], data = dataOf(header, names);
      if (drawn) drawn.destroy();
      if (!data) { cloud.textContent = "No row has both."; drawn = null; return; }
      drawn = RapidCloud.draw(cloud, data, { spot: (x, y, point) => { if (point !== undefined) show(data.rows[point]); }, lasso: (corners) => list(corners, data, names) });
      cloud.dataset.points = data.header.points;
    };
    across.addEventListener("change", draw);
    up.addEventListener("change", draw);
    draw();
  };
  // the first pictures are on the screen before anything is unpacked
  addEventListener("load", () => requestAnimationFrame(() => setTimeout(start)));
})();
