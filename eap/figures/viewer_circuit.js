const MOST_DRAWN = 5000, ROWS = 100, BOX = 58, TALL = 30, COLUMN = 72, ROW = 74, LEFT = 74;
const content = JSON.parse(document.getElementById("content").textContent);
const { circuits, sizes, nodes, receivers, senders, ends } = content;
const comparing = circuits.length === 2;
const find = (id) => document.getElementById(id);
const nEdges = senders.length;

const make = (name, attributes = {}, text) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
};
const tag = (name, properties = {}) => Object.assign(document.createElement(name), properties);
const count = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;

// ---- edges: names, scores, and which circuits have them --------------------------------------

// With spans of the prompt, nodes are called "m0 @ last", and edges "a0.h1->m0 @ last".
const component = (n) => nodes[n].split(" @ ")[0];
const spanOf = (n) => Math.floor(n / (nodes.length / Math.max(1, content.spans.length)));
const edgeName = (e) => `${component(senders[e])}->${receivers[ends[e]].name}`;
const names = Array.from({ length: nEdges }, (_, e) => edgeName(e));
const inputKind = (e) => /<(.)>/.exec(receivers[ends[e]].name)?.[1] ?? "";
let largest = circuits.map(() => 0);  // score in the chosen circuit
const share = (e) => Math.max(
  ...circuits.map((c, i) => (largest[i] ? Math.abs(c.score[e] ?? 0) / largest[i] : 0)));
const hasGiven = circuits.some((c) => c.given !== null);
// Positions of the slider: the circuit as given, if there is one, and then every size.
const positions = [...(hasGiven ? [null] : []), ...sizes.keys()];

const isIn = (c, e, position) => {
  if (position === null) return c.given !== null && c.given[e] === "1";
  return c.first[e] >= 0 && c.first[e] <= position;
};
const memberOf = (e, position) =>
  circuits.reduce((bits, c, i) => bits | (isIn(c, e, position) ? 1 << i : 0), 0);

// Open with the circuit as given, else with the smallest one known to do the task, else with about
// 100 edges selected, or as many as it takes.
const DOES_TASK = 0.8;
const measuredAt = (n) => content.curve.find((point) => point[0] === n);
const doesTask = (p) => measuredAt(circuits[0].kept[p])?.[1] >= DOES_TASK;
const fits = (p) => sizes[p] >= 100 && circuits[0].kept[p] > 0;
const first = positions.findIndex(doesTask);
const initial = hasGiven ? 0 : Math.max(0, first < 0 ? positions.findIndex(fits) : first);
const state = {
  position: positions[initial], query: [], sort: "score", down: true, rows: ROWS, node: null,
  members: new Set([1, 2, 3]),
};
let present = [];  // edges of the chosen circuit, the largest scores first
let member = new Uint8Array(nEdges);

// ---- layout ----------------------------------------------------------------------------------

const used = new Set();
for (let e = 0; e < nEdges; e++) {
  used.add(senders[e]);
  for (const node of receivers[ends[e]].nodes) used.add(node);
}
const kindOf = (name) => (/^a\d/.test(name) ? "head" : /^m\d/.test(name) ? "mlp" : "end");
const layerOf = (name) => Number(/\d+/.exec(name)?.[0] ?? -1);
const known = [...used].sort((a, b) => a - b);
const rowKey = (n) => {
  const name = component(n);
  if (name === "input") return -1;
  if (name === "logits") return Infinity;
  return 2 * layerOf(name) + (kindOf(name) === "mlp" && !content.parallel ? 1 : 0);
};
const places = new Map();  // of the nodes in the chosen circuit
let ordered = [];          // its rows, from the input up

const arrange = (present) => {
  const rows = new Map();
  for (const n of known.filter((node) => present.has(node))) {
    rows.set(rowKey(n), [...(rows.get(rowKey(n)) ?? []), n]);
  }
  ordered = [...rows.entries()].sort((a, b) => a[0] - b[0]).map((entry) => entry[1]);
  if (content.spans.length) {
    arrangeSpans();
    return;
  }
  const widest = Math.max(3, ...ordered.map((row) => row.length));
  const width = LEFT + (widest + 2) * COLUMN, height = Math.max(1, ordered.length) * ROW + 20;
  const middle = LEFT + ((widest + 2) * COLUMN) / 2;
  places.clear();
  ordered.forEach((row, number) => {
    const y = height - 10 - ROW / 2 - number * ROW;
    row.forEach((n, i) => {
      let x = middle + (i - (row.length - 1) / 2) * COLUMN;
      // A lone MLP stands aside, so that MLPs do not hide behind one another.
      if (row.length === 1 && kindOf(nodes[n]) === "mlp") {
        x = middle + (layerOf(nodes[n]) % 2 ? 1 : -1) * ((widest + 1) / 2) * COLUMN;
      }
      places.set(n, { x, y, row: number, column: i });
    });
  });
  setSize(width, height);
};

const setSize = (width, height, headings = []) => {
  drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
  drawing.style.width = `${width}px`;
  drawing.style.minWidth = `${Math.round(width * 0.7)}px`;
  const layers = ordered.filter((row) => kindOf(nodes[row[0]]) === "head").map(
    (row) => make("text", { class: "row-name", x: 6, y: places.get(row[0]).y + 4 },
      `layer ${layerOf(nodes[row[0]])}`));
  find("labels").replaceChildren(...layers, ...headings);
};

// A column for every span that has a node, in the prompt's order; its nodes side by side.
const arrangeSpans = () => {
  const inSpan = (row, span) => row.filter((n) => spanOf(n) === span);
  const shown = [...content.spans.keys()].filter(
    (span) => ordered.some((row) => inSpan(row, span).length));
  const height = Math.max(1, ordered.length) * ROW + 44, headings = [];
  let left = LEFT;
  places.clear();
  for (const span of shown) {
    const widest = Math.max(...ordered.map((row) => inSpan(row, span).length));
    const wide = Math.max(1.4, widest) * COLUMN + 16;
    headings.push(
      make("line", { class: "span-border", x1: left, x2: left, y1: 0, y2: height }),
      make("text", { class: "span-name", x: left + wide / 2, y: 18 }, content.spans[span]));
    ordered.forEach((row, number) => inSpan(row, span).forEach((n, i, all) => places.set(n, {
      x: left + wide / 2 + (i - (all.length - 1) / 2) * COLUMN,
      y: height - 10 - ROW / 2 - number * ROW, row: number, column: row.indexOf(n) })));
    left += wide;
  }
  setSize(left + 20, height, headings);
};

const ENTRY = { q: -17, k: 0, v: 17, "": 0 };
const curveOf = (from, to, kind, e) => {
  const a = places.get(from), b = places.get(to);
  const x0 = a.x, y0 = a.y - TALL / 2, x1 = b.x + ENTRY[kind], y1 = b.y + TALL / 2;
  const far = b.row - a.row, bend = Math.max(18, (y0 - y1) * 0.45);
  // A line that would run straight up through boxes swings to a side.
  const swing = Math.abs(x1 - x0) < BOX && far > 1 ? (e % 2 ? 1 : -1) * (34 + 7 * far) : 0;
  return `M${x0} ${y0}C${x0 + swing} ${y0 - bend} ${x1 + swing} ${y1 + bend} ${x1} ${y1}`;
};

// ---- drawing ---------------------------------------------------------------------------------

const drawing = find("drawing"), edgeLayer = find("edges"), nodeLayer = find("nodes");
const paths = new Map();  // edge -> its lines, made when it is first drawn
const boxes = new Map();

const linesOf = (e) => {
  if (!paths.has(e)) {
    const lines = receivers[ends[e]].nodes.map(
      (node) => ({ line: make("path", { "data-edge": names[e] }), node }));
    paths.set(e, lines);
    // Large scores lie above small ones.
    for (const { line } of lines) edgeLayer.prepend(line);
  }
  return paths.get(e);
};

const colourOf = (e) => {
  if (comparing) return ["", "low", "high", "both"][member[e]];
  return (circuits[0].score[e] ?? 0) < 0 ? "low" : "high";
};

const makeNodes = () => {
  for (const n of known) {
    const kind = kindOf(nodes[n]);
    const group = make("g", { class: `node ${kind}`, role: "button", tabindex: -1,
      "data-node": nodes[n] });
    group.append(make("rect", { x: -BOX / 2, y: -TALL / 2, width: BOX, height: TALL, rx: 5 }));
    group.append(make("text", { y: kind === "head" ? 0 : 4 }, component(n)));
    if (kind === "head") {
      for (const input of "qkv") {
        group.append(make("text", { class: "kind", x: ENTRY[input], y: 11 }, input));
      }
    }
    nodeLayer.append(group);
    boxes.set(n, group);
  }
};

const matches = (e) => state.query.every((term) => names[e].toLowerCase().includes(term));
// Heads share keys and values: an edge into one goes to those that send in a circuit that has it.
let sending = [];  // by circuit, the nodes that send
const reached = (e) => {
  const all = receivers[ends[e]].nodes;
  const live = all.filter((n) => sending.some((set, i) => member[e] & (1 << i) && set.has(n)));
  return live.length ? live : all;
};
const touches = (e, node) => senders[e] === node || reached(e).includes(node);

const update = () => {
  present = [];
  sending = circuits.map(() => new Set());
  for (let e = 0; e < nEdges; e++) {
    member[e] = memberOf(e, state.position);
    sending.forEach((set, i) => { if (member[e] & (1 << i)) set.add(senders[e]); });
    if (member[e] && (!comparing || state.members.has(member[e]))) present.push(e);
  }
  largest = circuits.map((c) => present.reduce((m, e) => Math.max(m, Math.abs(c.score[e] ?? 0)), 0));
  const shown = new Set(present.slice(0, MOST_DRAWN));
  for (const e of paths.keys()) {
    if (!shown.has(e)) for (const { line } of paths.get(e)) line.setAttribute("display", "none");
  }
  const live = new Map();
  const visit = (n, way) => {
    if (!live.has(n)) live.set(n, { in: 0, out: 0 });
    live.get(n)[way] += 1;
  };
  for (const e of present) {
    visit(senders[e], "out");
    for (const n of reached(e)) visit(n, "in");
  }
  arrange(live);
  for (const e of shown) {
    const kind = inputKind(e), part = share(e), entered = reached(e);
    for (const { line, node } of linesOf(e)) {
      if (!entered.includes(node)) {
        line.setAttribute("display", "none");
        continue;
      }
      line.style.strokeWidth = (0.9 + 4.1 * part).toFixed(2);
      line.style.strokeOpacity = (0.45 + 0.5 * part).toFixed(2);
      line.setAttribute("class", `in ${colourOf(e)} ${kind}`);
      line.setAttribute("d", curveOf(senders[e], node, kind, e));
      line.removeAttribute("display");
    }
  }
  for (const [n, box] of boxes) {
    const degree = live.get(n);
    box.setAttribute("tabindex", -1);
    if (!degree) {
      box.setAttribute("display", "none");
      continue;
    }
    const { x, y } = places.get(n), what = { head: "head", mlp: "MLP", end: "node" };
    box.removeAttribute("display");
    box.setAttribute("transform", `translate(${x} ${y})`);
    box.setAttribute("aria-label",
      `${what[kindOf(nodes[n])]} ${nodes[n]}: ${degree.in} in, ${degree.out} out`);
  }
  if (ordered.length) boxes.get(ordered[0][0]).setAttribute("tabindex", 0);
  choose();
  const counted = (n) => component(n) === "logits" || sending.some((set) => set.has(n));
  report(shown.size, [...live.keys()].filter(counted).length);
  fillTable();
  drawCurve();
};

// Which lines stand out: those of the kept node, or those searched for.
const choose = (hovered = null) => {
  const node = hovered ?? state.node;
  const choosing = node !== null || state.query.length > 0;
  edgeLayer.classList.toggle("choosing", choosing);
  if (!choosing) return;
  for (const [e, lines] of paths) {
    const chosen = (node === null || touches(e, node)) && matches(e);
    for (const { line } of lines) line.classList.toggle("chosen", chosen);
  }
};

const sizeText = () => {
  const after = present.length;
  if (state.position === null) return `as given: ${count(after, "edge")}`;
  const after2 = circuits.map((c) => c.kept[state.position].toLocaleString("en")).join(" and ");
  return `${sizes[state.position].toLocaleString("en")} selected, ${after2} after pruning`;
};

const faithfulnessText = (n) => {
  const point = measuredAt(n);
  if (!point) return "faithfulness not measured";
  const error = point[2] === null ? "" : ` ± ${number(point[2])} (standard error)`;
  const poor = point[1] < DOES_TASK ? ", does not do the task alone" : "";
  return `faithfulness ${number(point[1])}${error}${poor}`;
};

const report = (nDrawn, nNodes) => {
  find("size-text").value = sizeText();
  find("size").setAttribute("aria-valuetext", sizeText());
  const parts = [`${count(present.length, "edge")} and ${count(nNodes, "node")} of the model's `
    + `${content.total.toLocaleString("en")} edges`];
  if (comparing) {
    const only = [1, 2, 3].map((bits) => member.reduce((n, m) => n + (m === bits), 0));
    parts.push(`only ${circuits[0].name}: ${only[0]}, only ${circuits[1].name}: ${only[1]}, `
      + `both: ${only[2]}`);
  }
  if (!comparing) parts.push(faithfulnessText(present.length));
  if (!present.length) parts.push("no path from the input to the logits in so few edges");
  if (nDrawn < present.length) parts.push(`only the ${nDrawn.toLocaleString("en")} best drawn`);
  if (state.query.length) parts.push(`${count(present.filter(matches).length, "edge")} found`);
  find("status").textContent = parts.join("; ");
};
