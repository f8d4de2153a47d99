// The content of the page: edges, the circuits that contain them, and the user's selection.

const MOST_DRAWN = 5000, ROWS = 100;
const source = document.documentElement.outerHTML;  // as it was loaded, for "Save page"
const content = JSON.parse(document.getElementById("content").textContent);
const { circuits, sizes, nodes, receivers, senders, ends, labels, groups } = content;
const comparing = circuits.length === 2;
const find = (id) => document.getElementById(id);
const nEdges = senders.length;

const make = (name, attributes = {}, text) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
};
const tag = (name, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
};
const count = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;
const number = (value) => (value === null || value === undefined ? "unknown"
  : value === 0 ? "0" : Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5
    ? value.toExponential(2) : String(Number(value.toPrecision(4))));

// ---- edges: names, scores, and which circuits have them --------------------------------------

// With spans of the prompt, nodes are called "m0 @ last", and edges "a0.h1->m0 @ last".
const component = (n) => nodes[n].split(" @ ")[0];
const spanOf = (n) => Math.floor(n / (nodes.length / Math.max(1, content.spans.length)));
const names = Array.from({ length: nEdges },
  (_, e) => `${component(senders[e])}->${receivers[ends[e]].name}`);
const edgeOf = new Map(names.map((name, e) => [name, e]));
const inputKind = (e) => /<(.)>/.exec(receivers[ends[e]].name)?.[1] ?? "";
const hasGiven = circuits.some((c) => c.given !== null);
// Positions of the slider: the circuit as given, if there is one, and then every size.
const positions = [...(hasGiven ? [null] : []), ...sizes.keys()];

const isIn = (c, e, position) => {
  if (position === null) return c.given !== null && c.given[e] === "1";
  return c.first[e] >= 0 && c.first[e] <= position;
};
// Bit 1: in the first circuit, bit 2: in the second.
const memberOf = (e, position) =>
  circuits.reduce((bits, c, i) => bits | (isIn(c, e, position) ? 1 << i : 0), 0);

// Corrupting a helpful edge makes the metric worse: lower, unless low values are better.
const isHelpful = (c, e) => ((c.score[e] ?? 0) < 0) === (c.better !== false);
const areOpposite = (e) => comparing && circuits.every((c) => c.score[e])
  && isHelpful(circuits[0], e) !== isHelpful(circuits[1], e);

// ---- selection -------------------------------------------------------------------------------

const measuredAt = (n) => content.curve.find((point) => point[0] === n);
const doesTask = (p) => measuredAt(circuits[0].kept[p])?.[1] >= content.does_task;
const fits = (p) => sizes[p] >= 100;

// The page opens with the given circuit, else with the smallest circuit known to do the task, else
// with about 100 selected edges.
const opening = () => {
  if (hasGiven) return 0;
  const first = positions.findIndex(doesTask);
  return Math.max(0, first < 0 ? positions.findIndex(fits) : first);
};
const state = {
  position: positions[opening()], query: [], sort: "score", down: true, rows: ROWS, node: null,
  group: null, members: new Set([1, 2, 3]), side: false,
};
let present = [];  // edges of the selected circuit, largest scores first
let member = new Uint8Array(nEdges);
let largest = circuits.map(() => 0);  // score in the chosen circuit
const share = (e) => Math.max(
  ...circuits.map((c, i) => (largest[i] ? Math.abs(c.score[e] ?? 0) / largest[i] : 0)));
const matches = (e) => state.query.every((term) => names[e].toLowerCase().includes(term));

const membership = (e) => ["", `only ${circuits[0].name}`, `only ${circuits[1]?.name}`, "both"][
  member[e]] + (member[e] === 3 && areOpposite(e) ? ", opposite signs" : "");

// If heads share keys and values, an edge into these is drawn to the heads that send in a circuit
// with that edge.
let sending = [];  // sending nodes, by circuit
const reached = (e) => {
  const all = receivers[ends[e]].nodes;
  const live = all.filter((n) => sending.some((set, i) => member[e] & (1 << i) && set.has(n)));
  return live.length ? live : all;
};
const touches = (e, node) => senders[e] === node || reached(e).includes(node);
