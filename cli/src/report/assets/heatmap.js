// Maps: a colour for every layer and column. With the keyboard: arrows, Home, End, Page Up and Down move; Enter opens.
function heatmap(figure, run, maps, open) {
  const canvas = element("canvas", { tabIndex: 0 });
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-roledescription", "map");
  canvas.setAttribute("aria-label", figure.getAttribute("aria-label") + ": arrow keys move, Enter opens the layer");
  const tip = element("div", { className: "tip", hidden: true });
  const said = element("p", { className: "unseen" });
  said.setAttribute("aria-live", "polite");
  const about = element("p", { className: "about" });
  const legend = element("div", { className: "legend" });
  const field = element("div", { className: "field" }, canvas, tip);
  const choice = element("select", {}, ...maps.map((map, i) => element("option", { value: i }, map.title)));
  if (maps.length > 1) {
    figure.append(element("div", { className: "choices" }, element("label", {}, "Colour shows ", choice)));
  }
  figure.append(legend, field, said, about);

  let map = maps[0];
  let cursor = { row: 0, column: 0 };
  let shown = null; // the cell of the opened layer
  let place = null; // where cells lie, in CSS pixels
  const columns = () => map.columns || run.steps.map(([, sigma]) => sigma.toFixed(2));
  const unknown = () => (map.columns ? "none, or not measured" : "not known");
  const block = (name) => name.split(".")[0];

  function scale() {
    const known = map.rows.flat().filter((v) => v !== null);
    const low = Math.min(...known), high = Math.max(...known);
    if (map.scale === "bits") return { map: VIRIDIS, at: (v) => (v - 2) / 6, low, high };
    if (map.scale === "diverging") {
      const most = Math.max(Math.abs(low), Math.abs(high)) || 1;
      return { map: DIVERGING, at: (v) => (v / most + 1) / 2, low: -most, high: most };
    }
    const positive = known.filter((v) => v > 0);
    if (map.scale === "log" && positive.length) {
      const [a, b] = [Math.log(Math.min(...positive)), Math.log(Math.max(...positive))];
      return { map: VIRIDIS, at: (v) => (b > a ? (Math.log(Math.max(v, Math.exp(a))) - a) / (b - a) : 0.5), low: Math.exp(a), high: Math.exp(b) };
    }
    return { map: VIRIDIS, at: (v) => (high > low ? (v - low) / (high - low) : 0.5), low, high };
  }

  function draw() {
    const width = Math.floor(field.clientWidth);
    if (width < 50) return;
    const rows = run.layers.length, names = columns();
    const narrow = width < 560;
    const row = Math.min(Math.max(Math.floor(900 / rows), 4), 20);
    const each = row >= 11 && !narrow;
    const context = canvas.getContext("2d");
    const font = (size) => { context.font = size + "px system-ui, sans-serif"; };
    font(each ? Math.min(row, 12) : 12);
    const labels = each ? run.layers : run.layers.map(block);
    const left = Math.ceil(Math.max(...labels.map((l) => context.measureText(l).width))) + 8;
    const bottom = 38;
    // Columns with names have them above as well: such a map is read from the top.
    const top = map.columns ? 18 : 0;
    const height = top + rows * row + bottom;
    const ratio = devicePixelRatio || 1;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.height = height + "px";
    context.scale(ratio, ratio);
    // A few columns do not become bars as wide as the page.
    const span = Math.min(width - left - 2, 56 * names.length);
    place = { left, top, cell: span / names.length, row, rows, columns: names.length };
    const colours = scale();
    const missing = theme.colour("missing"), faint = theme.colour("faint"), page = theme.colour("page");
    context.textBaseline = "middle";
    context.textAlign = "right";
    font(each ? Math.min(row, 12) : 12);
    run.layers.forEach((layer, y) => {
      map.rows[y].forEach((value, x) => {
        context.fillStyle = value === null ? missing : shade(colours.map, colours.at(value));
        const from = Math.round(left + x * place.cell), to = Math.round(left + (x + 1) * place.cell);
        context.fillRect(from, top + y * row, to - from, row);
      });
      context.fillStyle = faint;
      const first = y === 0 || block(layer) !== block(run.layers[y - 1]);
      if (each || first) context.fillText(labels[y], left - 6, top + y * row + (each ? row / 2 : 8));
      if (first && y > 0) { context.fillStyle = page; context.fillRect(left, top + y * row - 0.5, span, 1); }
    });
    context.fillStyle = faint;
    context.textAlign = "center";
    font(12);
    const every = Math.ceil(names.length * 36 / span);
    names.forEach((name, x) => {
      if (x % every !== 0) return;
      context.fillText(name, left + (x + 0.5) * place.cell, top + rows * row + 11);
      if (top) context.fillText(name, left + (x + 0.5) * place.cell, 9);
    });
    const title = map.columns ? "bits of the weight (W) or of the input (A)" : "noise level σ, as sampling runs";
    context.textAlign = "left";
    context.fillText(title, left, top + rows * row + 28);
    const outline = (cell, colours, width) => colours.forEach((colour, i) => {
      context.strokeStyle = colour;
      context.lineWidth = width - 2 * i;
      const x = left + cell.column * place.cell, y = top + cell.row * row;
      context.strokeRect(x - 1, y - 1, place.cell + 2, row + 2);
    });
    if (shown && !map.columns) outline(shown, [page, theme.colour("ink")], 4);
    if (document.activeElement === canvas) outline(cursor, ["#000", "#fff"], 5);
    paintLegend(colours, missing);
  }

  function paintLegend(colours, missing) {
    legend.replaceChildren();
    const gap = map.rows.flat().includes(null);
    if (map.scale === "bits") {
      const used = [...new Set(map.rows.flat().filter((v) => v !== null))].sort((a, b) => a - b);
      used.forEach((bits) => {
        const mark = element("i");
        mark.style.background = shade(colours.map, colours.at(bits));
        legend.append(element("span", {}, mark, bits + " bits"));
      });
    } else {
      const strip = element("canvas", { width: 180, height: 12 });
      strip.setAttribute("aria-hidden", "true");
      const context = strip.getContext("2d");
      for (let x = 0; x < 180; x++) {
        context.fillStyle = shade(colours.map, x / 179);
        context.fillRect(x, 0, 1, 12);
      }
      legend.append(short(colours.low), strip, short(colours.high), element("span", {}, map.unit + (map.scale === "log" ? ", logarithmic" : "")));
    }
    if (gap) {
      const mark = element("i");
      mark.style.background = missing;
      legend.append(element("span", {}, mark, unknown()));
    }
  }

  function lines(cell) {
    const value = map.rows[cell.row][cell.column];
    const text = value === null ? unknown() : short(value) + (map.unit === "%" || map.scale === "bits" ? " " + map.unit : "");
    const where = map.columns ? map.columns[cell.column] : "step " + run.steps[cell.column][0] + ", σ = " + short(run.steps[cell.column][1]);
    return [run.layers[cell.row], where + ": " + text];
  }
  function show(cell) {
    const text = lines(cell);
    tip.replaceChildren(element("strong", {}, text[0]), element("br"), text[1]);
    tip.hidden = false;
    const x = place.left + (cell.column + 0.5) * place.cell, y = place.top + (cell.row + 1) * place.row + 6;
    tip.style.left = Math.max(0, Math.min(x + 10, field.clientWidth - tip.offsetWidth)) + "px";
    tip.style.top = (y + tip.offsetHeight > canvas.offsetHeight ? y - tip.offsetHeight - place.row - 12 : y) + "px";
    return text.join(", ");
  }
  function cellAt(event) {
    const box = canvas.getBoundingClientRect();
    const row = Math.floor((event.clientY - box.top - place.top) / place.row);
    const column = Math.floor((event.clientX - box.left - place.left) / place.cell);
    const inside = row >= 0 && row < place.rows && column >= 0 && column < place.columns;
    return inside ? { row, column } : null;
  }
  function choose(cell, focus) { open(cell.row, map.columns ? null : cell.column, focus); }

  canvas.addEventListener("pointermove", (event) => {
    const cell = place && cellAt(event);
    if (cell) show(cell); else tip.hidden = true;
  });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("click", (event) => {
    const cell = cellAt(event);
    if (!cell) return;
    cursor = cell;
    choose(cell, false);
    draw();
  });
  const moves = {
    ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0],
    PageUp: [-10, 0], PageDown: [10, 0], Home: [0, -1e9], End: [0, 1e9],
  };
  canvas.addEventListener("keydown", (event) => {
    const move = moves[event.key];
    const enter = event.key === "Enter" || event.key === " ";
    if (!move && !enter || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    if (enter) { choose(cursor, true); return; }
    const within = (value, count) => Math.min(Math.max(value, 0), count - 1);
    cursor = { row: within(cursor.row + move[0], place.rows), column: within(cursor.column + move[1], place.columns) };
    draw();
    said.textContent = show(cursor);
  });
  canvas.addEventListener("focus", () => { draw(); if (place && canvas.matches(":focus-visible")) said.textContent = show(cursor); });
  canvas.addEventListener("blur", () => { tip.hidden = true; draw(); });
  function select() {
    map = maps[Number(choice.value) || 0];
    about.textContent = map.about;
    cursor = { row: cursor.row, column: Math.min(cursor.column, columns().length - 1) };
    draw();
  }
  choice.addEventListener("change", select);
  new ResizeObserver(draw).observe(field);
  theme.onChange(draw);
  select();

  // Marks the cell of the layer that is open.
  return (row, column) => { shown = { row, column }; cursor = map.columns ? { ...cursor, row } : { row, column }; draw(); };
}
