// Training losses of some blocks, each a line.
function lossChart(run, blocks) {
  const length = Math.max(...blocks.map((b) => b.losses.length));
  const all = blocks.flatMap((b) => b.losses);
  return {
    data: [Array.from({ length }, (_, i) => i * run.loss_stride), ...blocks.map((b) => Array.from({ length }, (_, i) => b.losses[i] ?? null))],
    scales: { x: { time: false }, y: charts.logScale(all) },
    axes: [charts.linear("iteration", { size: 30 }), charts.log("loss")],
    series: [{}, ...blocks.map((b, i) => ({ stroke: blockColour(i, blocks.length), width: 2, points: { show: length < 12, size: 6 } }))],
    cursor: { drag: { x: false, y: false } },
  };
}
// Of many blocks, the first dark and the last light.
const blockColour = (i, count) => (count <= LINES.length ? theme.colour(LINES[i]) : shade(VIRIDIS, 0.15 + 0.75 * i / (count - 1)));

// Held-out errors: two dots a block, and the way between them.
function heldOutChart(run) {
  const nearest = run.blocks.map((b) => b.nearest), chosen = run.blocks.map((b) => b.chosen);
  const dots = (colour) => ({ stroke: theme.colour(colour), width: 0, paths: () => null, points: { show: true, size: 10, fill: theme.colour(colour), stroke: theme.colour(colour) } });
  const every = Math.ceil(run.blocks.length / 12);
  return {
    data: [run.blocks.map((_, i) => i), nearest, chosen],
    scales: { x: { time: false, range: [-0.6, run.blocks.length - 0.4] }, y: charts.logScale([...nearest, ...chosen].filter((v) => v !== null)) },
    axes: [
      charts.axis("block", { size: 30, grid: { show: false }, splits: () => run.blocks.map((_, i) => i).filter((i) => i % every === 0), values: (_, at) => at.map((i) => run.blocks[i].name) }),
      charts.log("mean squared error"),
    ],
    series: [{}, dots("orange"), dots("blue")],
    cursor: { drag: { x: false, y: false } },
    hooks: {
      drawAxes: [(plot) => {
        const { ctx } = plot;
        ctx.save();
        ctx.strokeStyle = theme.colour("strong-line");
        ctx.lineWidth = 2 * devicePixelRatio;
        run.blocks.forEach((b, i) => {
          if (!(b.nearest > 0 && b.chosen > 0)) return;
          const x = plot.valToPos(i, "x", true);
          ctx.beginPath();
          ctx.moveTo(x, plot.valToPos(b.nearest, "y", true));
          ctx.lineTo(x, plot.valToPos(b.chosen, "y", true));
          ctx.stroke();
        });
        ctx.restore();
      }],
    },
  };
}

document.documentElement.classList.add("scripted");
theme.apply();
JSON.parse(document.getElementById("data").textContent).forEach((run, index) => {
  const article = document.getElementById("run" + index);
  const images = article.querySelector(".images");
  if (images) slider(images);
  const explorer = article.querySelector(".explorer");
  let marks = [];
  let panel = null;
  if (explorer) {
    panel = layerPanel(explorer.querySelector(".layer"), run, (row, column) => marks.forEach((mark) => mark(row, column)));
    const map = explorer.querySelector(".map");
    if (run.maps.length) marks.push(heatmap(map, run, run.maps, panel.open));
    else { map.remove(); explorer.style.display = "block"; }
  }
  const sensitivity = article.querySelector('[data-kind="sensitivity"]');
  if (sensitivity && run.sensitivity) {
    marks.push(heatmap(sensitivity, run, [run.sensitivity], (row, column, focus) => panel && panel.open(row, null, true)));
  }
  if (panel) panel.start();
  const heldOut = article.querySelector('[data-kind="held-out"]');
  if (heldOut && run.blocks.every((b) => b.chosen === null)) heldOut.remove();
  else if (heldOut) {
    heldOut.append(charts.keys([["rounded to nearest", "orange"], ["as chosen", "blue"]]));
    charts.chart(heldOut, 220, () => heldOutChart(run));
  }
  const losses = article.querySelector('[data-kind="losses"]');
  if (losses) {
    const learned = run.blocks.filter((b) => b.losses.length);
    const keys = element("ul", { className: "keys" });
    const paint = () => keys.replaceChildren(...learned.map((b, i) => {
      const mark = element("i");
      mark.style.borderColor = blockColour(i, learned.length);
      return element("li", {}, mark, b.name);
    }));
    paint();
    theme.onChange(paint);
    losses.append(keys);
    charts.chart(losses, 220, () => lossChart(run, learned));
  }
});
