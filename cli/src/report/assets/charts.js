// Charts by uPlot: as wide as their place, in the colours of the page, drawn again when either changes.
const charts = (() => {
  const all = new Set();

  // Draws into a place what `build` says, which is asked again whenever colours change: { data, series, axes … }.
  // Returns how to draw other data.
  function chart(place, height, build) {
    let plot = null;
    const entry = { place, draw, resize };
    const box = element("div");
    place.append(box);
    function width() { return Math.max(Math.floor(place.clientWidth), 200); }
    function draw() {
      if (plot) plot.destroy();
      plot = null;
      box.replaceChildren();
      const built = build();
      if (!built || !place.isConnected) return;
      const { data, ...options } = built;
      plot = new uPlot({ width: width(), height, legend: { show: false }, ...options }, data, box);
    }
    function resize() { if (plot && plot.width !== width()) plot.setSize({ width: width(), height }); }
    new ResizeObserver(() => { if (plot) resize(); else draw(); }).observe(place);
    all.add(entry);
    draw();
    return draw;
  }
  // Removes the charts in an element that is about to go.
  function forget(inside) {
    for (const entry of [...all]) if (inside.contains(entry.place)) all.delete(entry);
  }
  theme.onChange(() => all.forEach((entry) => entry.draw()));

  // An axis in the page's colours.
  function axis(label, more) {
    const faint = theme.colour("faint");
    const line = theme.colour("line");
    return {
      label, labelSize: 20, labelFont: "13px system-ui, sans-serif", font: "12px system-ui, sans-serif", stroke: faint, labelGap: 2,
      grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1, size: 5 }, ...more,
    };
  }
  const values = (plot, ticks) => ticks.map((v) => (v === null ? "" : short(v)));
  const isPower = (v) => Math.abs(Math.log10(v) - Math.round(Math.log10(v))) < 1e-9;
  // Of a logarithmic axis, the powers of ten; all ticks where there are too few of them.
  const filter = (plot, ticks) => {
    const { min, max } = plot.scales.y;
    return max / min < 50 ? ticks : ticks.map((v) => (v !== null && isPower(v) ? v : null));
  };
  const raised = (n) => String(n).replace(/./g, (c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]));
  const powers = (plot, ticks) => ticks.map((v) => {
    if (v === null) return "";
    return isPower(v) && (v < 0.009 || v > 11000) ? "10" + raised(Math.round(Math.log10(v))) : short(v);
  });

  return {
    chart, forget, axis,
    // How to draw the charts in an element anew.
    of: (inside) => [...all].filter((entry) => inside.contains(entry.place)).map((entry) => entry.draw),
    // Of values upwards, or with `size: 30` along the bottom.
    linear: (label, more) => axis(label, { size: 58, values, space: more && more.size === 30 ? 50 : 20, ...more }),
    log: (label) => {
      const made = axis(label, { size: 58, values: powers, filter, space: 22 });
      made.grid = { ...made.grid, filter };
      made.ticks = { ...made.ticks, filter };
      return made;
    },
    // σ from 1 to 0, as sampling runs.
    sigma: () => axis("noise level σ", { size: 30, values }),
    // The scale of a logarithmic axis, a little wider than the values.
    logScale: (found) => {
      const known = found.filter((v) => v > 0);
      return { distr: 3, range: known.length ? [Math.min(...known) / 1.3, Math.max(...known) * 1.3] : [0.1, 1] };
    },
    // A legend of [name, colour, kind] where kind is line, dashed or area.
    keys: (entries) => element("ul", { className: "keys" }, ...entries.map(([name, colour, kind]) => {
      const mark = element("i", { className: kind || "line" });
      if (kind === "area") mark.style.background = "var(--" + colour + ")";
      else mark.style.borderColor = "var(--" + colour + ")";
      return element("li", {}, mark, name);
    })),
  };
})();
