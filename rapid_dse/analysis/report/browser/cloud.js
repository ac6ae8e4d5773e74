"use strict";
// A picture of many rows by two columns, on a canvas: points by kind, a readout of what is near, a lasso, and arrow keys.
const RapidCloud = (() => {
  // header: names, titles, units, ends and logarithmic of the axes, kinds; x and y in the columns' own units
  const decoded = (buffer) => {
    const size = new DataView(buffer).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size)));
    const count = header.points, start = 4 + size;
    return { header, x: new Float32Array(buffer, start, count), y: new Float32Array(buffer, start + 4 * count, count), kind: new Uint8Array(buffer, start + 8 * count, count) };
  };
  const COLOURS = ["--t6", "--accent", "--mark"], SIZES = [3, 3, 6], ALPHAS = [0.35, 0.45, 1], FEW = 2000;
  const NEAR = 14, LEAST_STROKE = 8, MOST_CORNERS = 120;

  const draw = (host, data, options = {}) => {
    const { header } = data, [unitX, unitY] = header.units;
    const colour = (name) => getComputedStyle(host).getPropertyValue(name).trim();
    const digits = (value) => (Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential(3) : String(Number(value.toPrecision(5))));
    host.replaceChildren();
    host.tabIndex = 0;
    host.setAttribute("role", "application");
    host.setAttribute("aria-label", `${header.titles[1]} against ${header.titles[0]}: ${header.rows.toLocaleString("en")} rows. Arrow keys go through its points, Enter shows one.`);
    // points by kind, in the units of the axes
    const sets = header.kinds.map((_, kind) => {
      const rows = [];
      for (let i = 0; i < data.kind.length; i++) if (data.kind[i] === kind) rows.push(i);
      const xs = new Float64Array(rows.length), ys = new Float64Array(rows.length);
      rows.forEach((row, i) => { xs[i] = data.x[row] / unitX; ys[i] = data.y[row] / unitY; });
      return [xs, ys, rows];
    });
    const room = (axis) => {
      let [low, high] = header.ends[axis].map((value) => value / header.units[axis]);
      if (header.logarithmic[axis]) { const more = (high / low) ** 0.04; return [low / more, high * more]; }
      const more = (high - low || Math.abs(high) || 1) * 0.04;
      return [low - more, high + more];
    };
    const points = (u, index) => {
      uPlot.orient(u, index, (series, xs, ys, scaleX, scaleY, toX, toY, left, top, wide, high) => {
        const kind = index - 1, few = data.kind.length < FEW, size = Math.max(SIZES[kind], few ? 5 : 0) * devicePixelRatio, half = size / 2;
        u.ctx.save();
        u.ctx.fillStyle = colour(COLOURS[kind]);
        u.ctx.globalAlpha = few ? Math.max(0.7, ALPHAS[kind]) : ALPHAS[kind];
        for (let i = 0; i < xs.length; i++) {
          const x = toX(xs[i], scaleX, wide, left), y = toY(ys[i], scaleY, high, top);
          u.ctx.fillRect(x - half, y - half, size, size);
        }
        u.ctx.restore();
      });
      return null;
    };
    // values on a logarithmic axis: 1, 2 and 5 times powers of ten, or all digits where those are few
    const decades = (low, high) => {
      const of = (wanted) => {
        const found = [];
        for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) for (const digit of wanted) found.push(Number((digit * 10 ** power).toPrecision(3)));
        return found.filter((value) => value >= low && value <= high);
      };
      const few = of([1, 2, 5]);
      return few.length > 2 ? few.filter((_, i) => i % Math.ceil(few.length / 9) === 0) : of([1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9]);
    };
    const named = (at) => header.titles[at] + (header.logarithmic[at] ? ", logarithmic" : "");
    const axis = (at) => ({ stroke: () => colour("--ink"), grid: { stroke: () => colour("--line"), width: 1 }, ticks: { stroke: () => colour("--line"), width: 1 },
      font: "12px system-ui, sans-serif", size: at ? 64 : 32, ...(header.logarithmic[at] ? { splits: (u, axis, low, high) => decades(low, high), filter: (u, ticks) => ticks } : {}), values: (u, ticks) => ticks.map((value) => (value === null ? "" : digits(value))) });
    const facets = [{ scale: "x", auto: false }, { scale: "y", auto: false }];
    const width = () => Math.max(260, host.clientWidth), height = () => Math.round(Math.max(280, Math.min(480, width() * 0.62)));
    const plot = new uPlot({
      mode: 2, width: width(), height: height(), legend: { show: false }, cursor: { drag: { x: false, y: false }, points: { show: false } },
      scales: { x: { time: false, distr: header.logarithmic[0] ? 3 : 1, range: () => room(0) }, y: { distr: header.logarithmic[1] ? 3 : 1, range: () => room(1) } },
      axes: [axis(0), axis(1)], series: [{}, ...sets.map((_, kind) => ({ label: header.kinds[kind], facets, paths: points }))],
    }, [null, ...sets.map(([xs, ys]) => [xs, ys])], host);
    const axes = document.createElement("p"), key = document.createElement("p");
    axes.className = "axes";
    axes.textContent = `across: ${named(0)}; up: ${named(1)}`;
    key.className = "legend";
    header.kinds.forEach((name, kind) => { const part = document.createElement("span"), patch = document.createElement("i"); patch.className = ["oom", "fits", "front"][kind]; part.append(patch, name); key.append(part, " "); });
    const line = document.createElement("p");
    line.className = "reading";
    line.textContent = " ";
    host.append(axes, key, line);
    const text = (set, i) => `${header.titles[0]} ${digits(sets[set][0][i])}, ${header.titles[1]} ${digits(sets[set][1][i])} (${header.kinds[set]})`;

    // --- a canvas over the picture for the outline and the point that is read
    const over = document.createElement("canvas");
    over.className = "outline";
    plot.over.append(over);
    let outline = [], marked = null, stroke = null;
    const sheet = () => {
      const { width: wide, height: high } = plot.over.getBoundingClientRect();
      over.width = wide * devicePixelRatio; over.height = high * devicePixelRatio;
      const ctx = over.getContext("2d");
      ctx.scale(devicePixelRatio, devicePixelRatio);
      const corners = stroke || outline.map(([x, y]) => [plot.valToPos(x / unitX, "x"), plot.valToPos(y / unitY, "y")]);
      if (corners.length) {
        ctx.beginPath();
        corners.forEach(([x, y], i) => (i ? ctx.lineTo(x, y) : ctx.moveTo(x, y)));
        if (!stroke) ctx.closePath();
        ctx.strokeStyle = colour("--mark"); ctx.lineWidth = 2; ctx.setLineDash([6, 3]); ctx.stroke();
      }
      if (marked) {
        ctx.beginPath(); ctx.setLineDash([]); ctx.strokeStyle = colour("--ink"); ctx.lineWidth = 2;
        ctx.arc(plot.valToPos(sets[marked[0]][0][marked[1]], "x"), plot.valToPos(sets[marked[0]][1][marked[1]], "y"), 7, 0, 7); ctx.stroke();
      }
    };
    const near = (x, y) => {
      let best = null, least = NEAR * NEAR;
      sets.forEach(([xs, ys], set) => {
        for (let i = 0; i < xs.length; i++) {
          const dx = plot.valToPos(xs[i], "x") - x, dy = plot.valToPos(ys[i], "y") - y, far = dx * dx + dy * dy;
          if (far <= least) { least = far; best = [set, i]; }
        }
      });
      return best;
    };
    const place = (event) => { const box = plot.over.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    const value = ([x, y]) => [plot.posToVal(x, "x") * unitX, plot.posToVal(y, "y") * unitY];
    const ownValue = (at) => [sets[at[0]][0][at[1]] * unitX, sets[at[0]][1][at[1]] * unitY];
    let looking = 0;
    plot.over.addEventListener("pointermove", (event) => {
      if (stroke) { stroke.push(place(event)); return sheet(); }
      const at = place(event);
      cancelAnimationFrame(looking);
      looking = requestAnimationFrame(() => { marked = near(...at); line.textContent = marked ? text(...marked) : " "; sheet(); });
    });
    plot.over.addEventListener("pointerdown", (event) => { if (event.button === 0 && options.lasso) { stroke = [place(event)]; plot.over.setPointerCapture(event.pointerId); } });
    plot.over.addEventListener("pointerup", (event) => {
      const made = stroke || [place(event)];
      stroke = null;
      const long = made.some(([x, y]) => Math.hypot(x - made[0][0], y - made[0][1]) > LEAST_STROKE);
      if (long && options.lasso) {
        const step = Math.ceil(made.length / MOST_CORNERS);
        outline = made.filter((_, i) => i % step === 0).map(value);
        if (outline.length > 2) options.lasso(outline); else outline = [];
      } else if (options.spot) { const at = near(...made[0]); options.spot(...(at ? ownValue(at) : value(made[0])), at ? sets[at[0]][2][at[1]] : undefined); }
      sheet();
    });
    plot.over.addEventListener("pointercancel", () => { stroke = null; sheet(); });
    // --- arrow keys go through the points by their place across
    let order = null, at = -1;
    host.onkeydown = (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "Enter" && marked && options.spot) { event.preventDefault(); return options.spot(...ownValue(marked), sets[marked[0]][2][marked[1]]); }
      if (!step || event.target !== host) return;
      event.preventDefault();
      order = order || sets.flatMap(([xs], set) => Array.from(xs, (_, i) => [set, i])).sort((a, b) => sets[a[0]][0][a[1]] - sets[b[0]][0][b[1]]);
      if (!order.length) return;
      at = (at + step + order.length) % order.length;
      marked = order[at];
      line.textContent = `${text(...marked)}; ${at + 1} of ${order.length}`;
      if (options.say) options.say(line.textContent);
      sheet();
    };
    const resized = new ResizeObserver(() => { if (plot.width !== width()) { plot.setSize({ width: width(), height: height() }); sheet(); } });
    resized.observe(host);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const again = () => { plot.redraw(false); sheet(); };
    dark.addEventListener("change", again);
    return {
      outline: (given) => { outline = given ? given.split(";").map((pair) => pair.split(",").map(Number)) : []; sheet(); },
      destroy: () => { resized.disconnect(); dark.removeEventListener("change", again); plot.destroy(); },
    };
  };
  return { decoded, draw };
})();
