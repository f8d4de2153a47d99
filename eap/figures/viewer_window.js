// Zoom, pan and fit. At zoom 1 the whole circuit fits the frame; the first steps of zooming in give
// boxes and rows more room, until they have their full size, and then magnify.

const view = { zoom: 1, x: 0.5, y: 0.5 };  // the centre, as a share of the drawing
const MOST_ZOOM = 16, LARGEST = 1.25;
let scale = 1;
let laidOut = "";

const frameSize = () => ({ w: frame.clientWidth || 800, h: frame.clientHeight || 600 });

// Set the visible part of the drawing, and repeat the layout if the available room has changed.
const look = (isNew = true) => {
  const { w, h } = frameSize();
  place(w * view.zoom, h * view.zoom);
  const layout = [extent.width, extent.height, pitch.row, panels.length].join();
  scale = Math.min((w * view.zoom) / extent.width, (h * view.zoom) / extent.height,
    LARGEST * view.zoom);
  const [wide, high] = [w / scale, h / scale];
  const start = (centre, size, all) => (size >= all ? (all - size) / 2
    : between(0, centre * all - size / 2, all - size));
  const [x, y] = [start(view.x, wide, extent.width), start(view.y, high, extent.height)];
  view.x = (x + wide / 2) / extent.width;
  view.y = (y + high / 2) / extent.height;
  drawing.setAttribute("viewBox", [x, y, wide, high].map((v) => v.toFixed(2)).join(" "));
  frame.classList.toggle("zoomed", view.zoom > 1);
  find("zoom-out").disabled = find("fit").disabled = view.zoom <= 1;
  find("zoom-in").disabled = view.zoom >= MOST_ZOOM;
  if (isNew || layout !== laidOut) draw();
  laidOut = layout;
};

// Zoom so that the drawing does not move at a given point of the frame (in pixels).
const zoomAt = (factor, px, py) => {
  const { w, h } = frameSize();
  const [dx, dy] = [(px ?? w / 2) - w / 2, (py ?? h / 2) - h / 2];
  const at = { x: view.x + dx / scale / extent.width, y: view.y + dy / scale / extent.height };
  view.zoom = between(1, view.zoom * factor, MOST_ZOOM);
  look(false);
  view.x = at.x - dx / scale / extent.width;
  view.y = at.y - dy / scale / extent.height;
  look(false);
};
const pan = (dx, dy) => {
  view.x -= dx / scale / extent.width;
  view.y -= dy / scale / extent.height;
  look(false);
};
const fit = () => {
  Object.assign(view, { zoom: 1, x: 0.5, y: 0.5 });
  look(false);
};

// Scroll to a node that was reached by keyboard or from the table.
const reveal = (n) => {
  if (!places.has(n)) return;
  const { w, h } = frameSize(), { x, y } = places.get(n);
  const isOut = (value, centre, all, size) =>
    Math.abs(value - centre * all) > size / scale / 2 - pitch.wide / 2;
  if (isOut(x, view.x, extent.width, w)) view.x = x / extent.width;
  if (isOut(y, view.y, extent.height, h)) view.y = y / extent.height;
  look(false);
};

const pointers = new Map();
let wasDragged = false;  // a drag is not a click

const movePointer = (event) => {
  const before = pointers.get(event.pointerId);
  if (!before) return;
  const now = { x: event.clientX, y: event.clientY, start: before.start };
  const [dx, dy] = [now.x - before.x, now.y - before.y];
  if (pointers.size === 2) {
    const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
    const apart = (p) => Math.hypot(p.x - other.x, p.y - other.y) || 1;
    const box = frame.getBoundingClientRect();
    zoomAt(apart(now) / apart(before), (now.x + other.x) / 2 - box.left,
      (now.y + other.y) / 2 - box.top);
    wasDragged = true;
  } else if (wasDragged || Math.hypot(now.x - now.start.x, now.y - now.start.y) > 4) {
    if (!wasDragged) frame.setPointerCapture(event.pointerId);
    wasDragged = true;
    frame.classList.add("dragged");
    if (view.zoom > 1) pan(dx, dy);
  }
  pointers.set(event.pointerId, now);
};

const listenToWindow = () => {
  find("zoom-in").addEventListener("click", () => zoomAt(1.5));
  find("zoom-out").addEventListener("click", () => zoomAt(1 / 1.5));
  find("fit").addEventListener("click", fit);
  frame.addEventListener("pointerdown", (event) => {
    if (event.button > 0) return;
    if (!pointers.size) wasDragged = false;
    const at = { x: event.clientX, y: event.clientY };
    pointers.set(event.pointerId, { ...at, start: at });
  });
  frame.addEventListener("pointermove", movePointer);
  for (const name of ["pointerup", "pointercancel", "pointerleave"]) {
    frame.addEventListener(name, (event) => {
      pointers.delete(event.pointerId);
      frame.classList.remove("dragged");
    });
  }
  frame.addEventListener("wheel", (event) => {
    // Ctrl and wheel, which is also what pinching a touchpad sends; the wheel alone moves a
    // drawing that is larger than its frame, and scrolls the page otherwise.
    const box = frame.getBoundingClientRect();
    if (event.ctrlKey || event.metaKey) {
      zoomAt(Math.exp(-between(-60, event.deltaY, 60) / 150), event.clientX - box.left,
        event.clientY - box.top);
    } else if (view.zoom > 1) pan(-event.deltaX, -event.deltaY);
    else return;
    event.preventDefault();
  }, { passive: false });
  frame.addEventListener("keydown", (event) => {
    const act = { "+": () => zoomAt(1.5), "=": () => zoomAt(1.5), "-": () => zoomAt(1 / 1.5),
      0: fit }[event.key];
    if (!act || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    act();
  });
  new ResizeObserver(() => look(false)).observe(frame);
  addEventListener("beforeprint", fit);
};
