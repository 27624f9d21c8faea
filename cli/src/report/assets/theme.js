// Colours: those of the system, or what the button says. Whatever is drawn on a canvas is drawn again when they change.
const theme = (() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const names = ["system", "light", "dark"];
  const listeners = [];
  let chosen = 0;
  let printing = false;

  function apply() {
    const name = printing ? "light" : names[chosen];
    if (name === "system") root.removeAttribute("data-theme");
    else root.setAttribute("data-theme", name);
    button.textContent = "Colours: " + (chosen === 0 ? "as the system" : names[chosen]);
    listeners.forEach((draw) => draw());
  }
  button.addEventListener("click", () => { chosen = (chosen + 1) % names.length; apply(); });
  button.removeAttribute("aria-label");
  dark.addEventListener("change", apply);
  addEventListener("beforeprint", () => { printing = true; apply(); });
  addEventListener("afterprint", () => { printing = false; apply(); });

  return {
    // A colour of the style sheet.
    colour: (name) => getComputedStyle(root).getPropertyValue("--" + name).trim(),
    onChange: (draw) => { listeners.push(draw); },
    apply,
  };
})();

// viridis, and ColorBrewer's PuOr the other way round: told apart with every kind of colour vision.
const VIRIDIS = ["#440154", "#482475", "#414487", "#355f8d", "#2a788e", "#21918c", "#22a884", "#44bf70", "#7ad151", "#bddf26", "#fde725"];
const DIVERGING = ["#7f3b08", "#b35806", "#e08214", "#fdb863", "#fee0b6", "#f7f7f7", "#d8daeb", "#b2abd2", "#8073ac", "#542788", "#2d004b"];
// Okabe and Ito's, by names of the style sheet.
const LINES = ["blue", "orange", "green", "red", "purple"];

// The colour of a place between 0 and 1.
function shade(map, at) {
  const place = Math.min(Math.max(at, 0), 1) * (map.length - 1);
  const below = Math.min(Math.floor(place), map.length - 2);
  const part = (text, i) => parseInt(text.slice(1 + 2 * i, 3 + 2 * i), 16);
  const mix = [0, 1, 2].map((i) => {
    const from = part(map[below], i);
    return Math.round(from + (part(map[below + 1], i) - from) * (place - below));
  });
  return "rgb(" + mix.join(",") + ")";
}

// An element with properties and children; text is text, never markup.
function element(name, properties, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties || {})) {
    if (key in made && key !== "list") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// 0.0123, −12.3, 1.23e-7; a whole number as it is.
function short(value) {
  if (value === null || value === undefined) return "not known";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size < 1e-3 || size >= 1e5 ? size.toExponential(2) : Number.isInteger(size) ? String(size) : String(Number(size.toPrecision(3)));
  return (value < 0 ? "−" : "") + text;
}
