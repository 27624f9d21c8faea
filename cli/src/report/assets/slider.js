// Two images over each other with a handle between them. The images are those of the table below.
function slider(section) {
  const viewer = section.querySelector(".viewer");
  const rows = [...section.querySelectorAll("tbody tr")];
  const compare = viewer.querySelector(".compare");
  const [under, over] = [viewer.querySelector(".under"), viewer.querySelector(".over")];
  const [left, right] = [viewer.querySelector(".left"), viewer.querySelector(".right")];
  const handle = viewer.querySelector(".handle");
  const caption = viewer.querySelector(".caption");
  const strip = section.querySelector(".strip");
  let current = 0;

  function show() {
    const row = rows[current];
    const cells = [...row.querySelectorAll("td")];
    const prompt = row.querySelector(".pick").textContent;
    const put = (image, select) => {
      const source = cells[Number(select.value)].querySelector("img");
      image.src = source.src;
      image.alt = source.alt;
      compare.style.aspectRatio = source.getAttribute("width") + " / " + source.getAttribute("height");
    };
    put(over, left);
    put(under, right);
    const about = (select) => {
      const score = cells[Number(select.value)].querySelector("small").innerText.replace(/\s*\n\s*/g, ", ");
      return select.selectedOptions[0].textContent + (score ? " (" + score + ")" : "");
    };
    caption.replaceChildren(element("strong", {}, prompt), element("br"), "Left " + about(left) + ", right " + about(right) + ".");
    rows.forEach((r) => {
      r.classList.toggle("chosen", r === row);
      r.querySelector(".pick").setAttribute("aria-pressed", String(r === row));
    });
  }
  function move() {
    compare.style.setProperty("--at", handle.value + "%");
    handle.setAttribute("aria-valuetext", handle.value + " % left image");
  }
  function go(to) {
    current = (to + rows.length) % rows.length;
    show();
    const row = rows[current];
    const room = strip.clientHeight - row.offsetHeight;
    if (row.offsetTop < strip.scrollTop + 40 || row.offsetTop > strip.scrollTop + room) strip.scrollTop = row.offsetTop - 60;
  }
  handle.addEventListener("input", move);
  // The pointer moves the bar anywhere on the images; the range itself is for the keyboard.
  const follow = (event) => {
    const box = compare.getBoundingClientRect();
    handle.value = Math.round(100 * (event.clientX - box.left) / box.width);
    move();
  };
  compare.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    compare.setPointerCapture(event.pointerId);
    handle.focus({ preventScroll: true });
    follow(event);
  });
  compare.addEventListener("pointermove", (event) => { if (compare.hasPointerCapture(event.pointerId)) follow(event); });
  [left, right].forEach((select) => select.addEventListener("change", show));
  viewer.querySelector(".previous").addEventListener("click", () => go(current - 1));
  viewer.querySelector(".next").addEventListener("click", () => go(current + 1));
  rows.forEach((row, i) => row.addEventListener("click", () => { current = i; show(); }));
  // Side by side where there is room.
  const pair = element("div", { className: "images-pair" });
  viewer.before(pair);
  pair.append(viewer, strip);
  show();
  move();
}
