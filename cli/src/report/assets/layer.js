// One layer: its input over time, at one timestep and by channel; its integers; how its block was rounded.
function layerPanel(panel, run, opened) {
  const choice = element("select", {}, ...run.layers.map((name, i) => element("option", { value: i }, name)));
  const title = element("h3");
  const step = element("input", { type: "range", min: 0, max: Math.max(run.steps.length - 1, 0), step: 1, value: 0 });
  const which = element("output");
  const facts = element("p", { className: "about" });
  const plots = element("div", { className: "plots" });
  const previous = element("button", { type: "button", ariaLabel: "Previous layer" }, "‹");
  const next = element("button", { type: "button", ariaLabel: "Next layer" }, "›");
  panel.append(
    title,
    element("div", { className: "choices" }, element("label", {}, "Layer ", choice), element("span", { className: "steps" }, previous, next)),
  );
  if (run.steps.length > 1) panel.append(element("div", { className: "choices" }, element("label", {}, "Timestep ", step), which));
  panel.append(facts, plots);

  let layer = run.first;
  let at = 0;
  let atStep = []; // what is drawn anew when the timestep changes

  const input = () => run.inputs && run.inputs.all[run.inputs.of[layer]];
  const grid = (column) => run.grids && run.grids[layer][column];
  // The ends of a grid, around the mean shift if there is one.
  function ends(column) {
    const found = grid(column);
    if (!found) return null;
    const shift = input() ? input().shift : [];
    const centre = found.shift && shift.length ? shift[column] : 0;
    return [centre - found.absmax - found.step, centre + found.absmax];
  }
  // A byte of a histogram as a share.
  const share = (byte) => (byte === 0 ? null : 10 ** (9 * (byte - 1) / 254 - 9));

  function figure(heading, about, height, build, keys) {
    const made = element("figure", { className: "chart" }, element("figcaption", {}, heading));
    if (keys) made.append(charts.keys(keys));
    plots.append(made);
    const draw = charts.chart(made, height, build);
    if (about) made.append(element("p", { className: "about" }, about));
    return draw;
  }
  // σ rises in the data and falls on the axis.
  const rising = (values) => [...values].reverse();

  function overTime() {
    if (!input() || run.steps.length < 2) return;
    const around = run.grids && run.grids[layer].some((g) => g && g.shift);
    const shifted = around ? "Each channel has a shift of its own; the grid is drawn around their mean." : "";
    const keys = [["smallest to largest", "spread", "area"], ["1 % to 99 %", "bulk", "area"], ["median", "blue"]];
    if (run.grids) keys.push(["ends of the plan's grid", "red", "dashed"]);
    figure("Values over σ", shifted, 180, () => {
      const [min, , p01, p50, p99, , max] = input().quantiles.map(rising);
      const sigma = rising(run.steps.map(([, s]) => s));
      const lows = [], highs = [];
      run.steps.forEach((_, i) => { const e = ends(i); lows.push(e ? e[0] : null); highs.push(e ? e[1] : null); });
      const none = { stroke: "transparent", width: 0, points: { show: false } };
      const dashed = { stroke: theme.colour("red"), width: 2, dash: [6, 4], points: { show: false } };
      return {
        data: [sigma, min, max, p01, p99, p50, rising(lows), rising(highs)],
        scales: { x: { time: false, dir: -1, range: [0, 1] } },
        axes: [charts.sigma(), charts.linear("value")],
        series: [{}, none, none, none, none, { stroke: theme.colour("blue"), width: 2, points: { show: false } }, dashed, dashed],
        bands: [{ series: [2, 1], fill: theme.colour("spread") }, { series: [4, 3], fill: theme.colour("bulk") }],
        cursor: { drag: { x: false, y: false } },
        hooks: {
          // Where the timestep is.
          draw: [(plot) => {
            const x = plot.valToPos(run.steps[at][1], "x", true);
            line(plot, x, theme.colour("strong-line"), []);
          }],
        },
      };
    }, keys);
  }
  function line(plot, x, colour, dash) {
    const { ctx, bbox } = plot;
    if (!(x >= bbox.left - 1 && x <= bbox.left + bbox.width + 1)) return;
    ctx.save();
    ctx.strokeStyle = colour;
    ctx.lineWidth = 2 * devicePixelRatio;
    ctx.setLineDash(dash.map((d) => d * devicePixelRatio));
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.restore();
  }

  function histogram() {
    if (!input() || !input().histograms.some((h) => h)) return;
    const keys = [["share of the values", "blue", "area"]];
    if (run.grids) keys.push(["ends of the plan's grid", "red", "dashed"]);
    const draw = figure("Values at this timestep", "", 165, () => {
      const found = input().histograms[at];
      if (!found) return null;
      const bytes = Uint8Array.from(atob(found.bytes), (c) => c.charCodeAt(0));
      const width = (found.high - found.low) / bytes.length;
      const x = [], y = [];
      bytes.forEach((byte, i) => { x.push(found.low + i * width); y.push(share(byte)); });
      // A step ends where the next begins.
      x.push(found.high);
      y.push(y[y.length - 1]);
      const e = ends(at);
      const span = e ? [Math.min(e[0], found.low), Math.max(e[1], found.high)] : [found.low, found.high];
      const room = (span[1] - span[0]) * 0.02 || 1;
      return {
        data: [x, y],
        scales: { x: { time: false, range: [span[0] - room, span[1] + room] }, y: charts.logScale(y) },
        axes: [charts.linear("value", { size: 30 }), charts.log("share")],
        series: [{}, {
          stroke: theme.colour("blue"), fill: theme.colour("blue"), width: 0.5, points: { show: false },
          paths: uPlot.paths.stepped({ align: 1 }), fillTo: (plot) => plot.scales.y.min,
        }],
        cursor: { drag: { x: false, y: false } },
        hooks: { draw: [(plot) => (e || []).forEach((v) => line(plot, plot.valToPos(v, "x", true), theme.colour("red"), [6, 4]))] },
      };
    }, keys);
    atStep.push(draw);
  }

  function channels() {
    const found = input() && input().channels;
    if (!found || !found.count) return;
    const most = found.most.map(([c, low, high]) => c + " (" + short(low) + " to " + short(high) + ")").join(", ");
    const about = "At step " + run.steps[found.at][0] + ", where the layer is largest" + (found.per > 1 ? "; " + found.per + " channels to a bar" : "") +
      ". " + found.outliers + " of " + found.count + " are outliers. Widest: " + most + ".";
    figure("Ranges of the channels", about, 165, () => {
      const far = new Set(found.far);
      const low = Math.min(0, ...found.low), high = Math.max(0, ...found.high);
      return {
        data: [found.low.map((_, i) => i * found.per), found.low, found.high],
        scales: { x: { time: false, range: [-0.5 * found.per, (found.low.length + 0.5) * found.per] }, y: { range: [low * 1.04, high * 1.04 || 1] } },
        axes: [charts.linear("channel", { size: 30, grid: { show: false } }), charts.linear("value")],
        series: [{}, { paths: () => null, points: { show: false } }, { paths: () => null, points: { show: false } }],
        cursor: { drag: { x: false, y: false } },
        hooks: {
          draw: [(plot) => {
            const { ctx } = plot;
            ctx.save();
            const width = plot.valToPos(found.per, "x", true) - plot.valToPos(0, "x", true);
            found.low.forEach((value, i) => {
              ctx.fillStyle = theme.colour(far.has(i) ? "red" : "blue");
              const top = plot.valToPos(found.high[i], "y", true), bottom = plot.valToPos(value, "y", true);
              ctx.fillRect(plot.valToPos(i * found.per, "x", true) + 0.1 * width, top, Math.max(0.8 * width, 1), Math.max(bottom - top, 1));
            });
            ctx.restore();
          }],
        },
      };
    }, [["from smallest to largest value", "blue", "area"], ["range over 2.5 times the median", "red", "area"]]);
  }

  function integers() {
    const found = run.integers[layer];
    if (!found) return;
    const last = found.shares.length - 1;
    const bars = uPlot.paths.bars({ size: [0.8, 60] });
    figure("Integers of the weight", "", 150, () => ({
      data: [
        found.shares.map((_, i) => found.lowest + i),
        found.shares.map((s, i) => (i === 0 || i === last ? null : 100 * s)),
        found.shares.map((s, i) => (i === 0 || i === last ? 100 * s : null)),
      ],
      scales: { x: { time: false, range: [found.lowest - 0.7, found.lowest + last + 0.7] }, y: { range: (_, low, high) => [0, high * 1.05 || 1] } },
      axes: [charts.linear("integer", { size: 30, grid: { show: false }, incrs: [1, 2, 4, 8, 16, 32, 64] }), charts.linear("share, %")],
      series: [
        {},
        { fill: theme.colour("blue"), stroke: theme.colour("blue"), width: 0, paths: bars, points: { show: false } },
        { fill: theme.colour("red"), stroke: theme.colour("red"), width: 0, paths: bars, points: { show: false } },
      ],
      cursor: { drag: { x: false, y: false } },
    }), [["share of the weights", "blue", "area"], ["ends of the grid", "red", "area"]]);
  }

  function rounding() {
    const block = run.blocks[run.block_of[layer]];
    if (!block || block.chosen === null) return;
    const change = block.nearest > 0 ? " (" + (block.chosen <= block.nearest ? "−" : "+") + Math.abs(Math.round(100 * (block.chosen / block.nearest - 1))) + " %)" : "";
    const about = "Held-out error of " + block.name + ": " + short(block.nearest) + " rounded to nearest, " + short(block.chosen) + " as chosen" + change + ".";
    if (block.losses.length < 2) { plots.append(element("p", { className: "about" }, about)); return; }
    figure("Training loss of " + block.name, about, 150, () => lossChart(run, [block]));
  }

  function atTimestep() {
    if (!run.steps.length) return;
    const [number, sigma] = run.steps[at];
    which.textContent = "step " + number + ", σ = " + short(sigma);
    step.setAttribute("aria-valuetext", which.textContent);
    const parts = [];
    const q = input() && input().quantiles.map((row) => row[at]);
    if (q) parts.push(short(q[0]) + " to " + short(q[6]) + (q[3] === null ? "" : ", median " + short(q[3])));
    const g = grid(at);
    if (g) parts.push("input on " + g.bits + " bits, steps of " + short(g.step) + (g.shift ? " around the shift" : ""));
    const w = run.weight_bits[layer];
    if (w) parts.push("weight on " + w + " bits");
    facts.textContent = parts.join("; ") + (parts.length ? "." : "");
  }
  function draw() {
    charts.forget(plots);
    plots.replaceChildren();
    atStep = [];
    title.textContent = run.layers[layer];
    choice.value = layer;
    overTime();
    if (plots.lastChild) atStep.push(...charts.of(plots.lastChild));
    histogram();
    channels();
    integers();
    rounding();
    atTimestep();
  }
  function open(row, column, focus) {
    const same = row === layer;
    layer = row;
    if (column !== null) { at = column; step.value = column; }
    if (same && plots.childElementCount) { atTimestep(); atStep.forEach((d) => d()); } else draw();
    opened(layer, at);
    if (focus || panel.getBoundingClientRect().top > innerHeight) {
      panel.scrollIntoView({ block: "start" });
      panel.focus({ preventScroll: true });
    }
  }
  const go = (by) => open((layer + by + run.layers.length) % run.layers.length, null, false);
  previous.addEventListener("click", () => go(-1));
  next.addEventListener("click", () => go(1));
  choice.addEventListener("change", () => open(Number(choice.value), null, false));
  step.addEventListener("input", () => open(layer, Number(step.value), false));
  return { open, start: () => { draw(); opened(layer, at); } };
}
