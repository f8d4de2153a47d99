// Layout of nodes and lines. `arrange` puts the nodes into rows, one row per layer; `place` gives
// the nodes coordinates that depend on the size of the frame, so that a deep model fits a screen
// and a wide model fits a phone.

const FULL = { column: 92, row: 112 }, LEAST = { column: 25, row: 21 };
const kindOf = (name) => (/^a\d/.test(name) ? "head" : /^m\d/.test(name) ? "mlp" : "end");
const layerOf = (name) => Number(/\d+/.exec(name)?.[0] ?? -1);
// With spans, an MLP that reads its layer's heads has a row of its own.
const rowKey = (n) => ({ input: -1, logits: Infinity })[component(n)] ?? layerOf(nodes[n])
  + (content.spans.length && !content.parallel && isMlp(n) ? 0.5 : 0);

const places = new Map();  // of the nodes in the selected circuit
let ordered = [];          // rows, from the input up: heads, then the MLP
let pitch = { ...FULL, wide: 58, tall: 32 };
let extent = { width: 1, height: 1 };  // of the whole drawing
let panels = [{ x: 0, y: 0 }];         // where each picture starts: two, side by side
let spanColumns = [];                  // of spans of the prompt, in its order, if it has any

const arrange = (live) => {
  const rows = new Map();
  for (const n of [...live.keys()].sort((a, b) => a - b)) {
    rows.set(rowKey(n), [...(rows.get(rowKey(n)) ?? []), n]);
  }
  ordered = [...rows.entries()].sort((a, b) => a[0] - b[0]).map((entry) => entry[1]);
};

const isMlp = (n) => kindOf(nodes[n]) === "mlp";
const between = (low, value, high) => Math.max(low, Math.min(value, high));

const place = (frameWidth, frameHeight) => {
  const beside = state.side && frameWidth >= 560, below = state.side && !beside;
  const [w, h] = [frameWidth / (beside ? 2 : 1), frameHeight / (below ? 2 : 1)];
  places.clear();
  const [width, height] = content.spans.length ? placeInSpans(w, h) : placeInRows(w, h);
  panels = [{ x: 0, y: 0, width, height }];
  if (beside) panels.push({ ...panels[0], x: width });
  if (below) panels.push({ ...panels[0], y: height });
  extent = { width: width * (beside ? 2 : 1), height: height * (below ? 2 : 1) };
};

const setPitch = (column, row) => {
  pitch = { column, row, wide: Math.min(62, column - between(3, column * 0.2, 16)),
    tall: between(12, row * 0.42, 32) };
};
const leftOf = (w) => (w < 560 ? 30 : 58);  // room for the names of rows

const placeInRows = (w, h) => {
  const heads = Math.max(2, ...ordered.map((row) => row.filter((n) => !isMlp(n)).length));
  const hasMlps = ordered.some((row) => row.some(isMlp));
  const left = leftOf(w);
  // A column of MLPs at the right, and room beyond it for the lines between them.
  const wide = heads + (hasMlps ? 2.3 : 0.4);
  const column = between(LEAST.column, (w - left) / wide, FULL.column);
  const row = between(LEAST.row, (h - 16) / (ordered.length + 0.3), FULL.row);
  setPitch(column, row);
  const width = left + wide * column, height = (ordered.length + 0.3) * row + 16;
  const middle = left + (heads * column) / 2 + (hasMlps ? 0 : 0.2 * column);
  ordered.forEach((nodesOfRow, number) => {
    const y = height - 8 - row * (number + 0.5 + (hasMlps && !content.parallel ? 0 : 0.15));
    const inRow = nodesOfRow.filter((n) => !isMlp(n));
    nodesOfRow.forEach((n, i) => {
      const up = isMlp(n) && !content.parallel ? row / 2 : 0;
      const x = isMlp(n) ? left + (heads + 1) * column
        : middle + (inRow.indexOf(n) - (inRow.length - 1) / 2) * column;
      places.set(n, { x, y: y - up, row: number, column: i });
    });
  });
  return [width, height];
};

// A column for every span that has a node; within it, the nodes of a row side by side.
const placeInSpans = (w, h) => {
  const inSpan = (row, span) => row.filter((n) => spanOf(n) === span);
  const widest = [...content.spans.keys()].map(
    (span) => Math.max(...ordered.map((row) => inSpan(row, span).length)));
  const shown = [...content.spans.keys()].filter((span) => widest[span] > 0);
  const slots = (span) => Math.max(1.4, widest[span]) + 0.3;
  const left = leftOf(w), total = shown.reduce((sum, span) => sum + slots(span), 0.3);
  const column = between(LEAST.column, (w - left) / total, FULL.column);
  const row = between(LEAST.row, (h - 36) / (ordered.length + 0.3), FULL.row);
  setPitch(column, row);
  const height = (ordered.length + 0.3) * row + 36;
  let x = left;
  spanColumns = shown.map((span) => {
    const at = { span, left: x, wide: slots(span) * column };
    x += at.wide;
    return at;
  });
  for (const at of spanColumns) {
    ordered.forEach((row, number) => inSpan(row, at.span).forEach((n, i, all) => places.set(n, {
      x: at.left + at.wide / 2 + (i - (all.length - 1) / 2) * column,
      y: height - 8 - pitch.row * (number + 0.5), row: number, column: row.indexOf(n) })));
  }
  return [x + 0.3 * column, height];
};

// Edges enter a head's lower side at the left (q), in the middle (k) or at the right (v).
const entryOf = (kind) => ({ q: -0.29, k: 0, v: 0.29, "": 0 })[kind] * pitch.wide;

const curveOf = (from, to, kind, e, panel) => {
  const a = places.get(from), b = places.get(to);
  const x0 = a.x + panel.x, y0 = a.y + panel.y - pitch.tall / 2;
  const x1 = b.x + panel.x + entryOf(kind), y1 = b.y + panel.y + pitch.tall / 2;
  const far = (a.y - b.y) / pitch.row, bend = Math.max(pitch.row * 0.24, (y0 - y1) * 0.45);
  let swing = 0;
  // A line that would run straight up through boxes bends to one side, at MLPs to the right.
  if (Math.abs(x1 - x0) < pitch.wide && far > 1.2) {
    const right = panel.x + panel.width - x0, side = isMlp(from) || e % 2 ? 1 : -1;
    const room = (side > 0 ? right : x0 - panel.x) - 4;
    swing = side * Math.min(room / 0.75, pitch.column * (0.75 + 0.09 * far));
  }
  return `M${x0.toFixed(1)} ${y0.toFixed(1)}C${(x0 + swing).toFixed(1)} ${(y0 - bend).toFixed(1)} `
    + `${(x1 + swing).toFixed(1)} ${(y1 + bend).toFixed(1)} ${x1.toFixed(1)} ${y1.toFixed(1)}`;
};

// The name in a box, without the layer if there is no room.
const shownName = (name) => {
  if (pitch.wide >= 40) return name;
  return { input: "in", logits: "out" }[name] ?? name.replace(/^a\d+\./, "");
};
const sizeOf = (text) => Math.min(11.5, pitch.tall * 0.8, pitch.wide / (text.length * 0.6));
