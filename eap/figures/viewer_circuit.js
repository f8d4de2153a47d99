// The drawing: lines and boxes of the chosen circuit.

const drawing = find("drawing"), edgeLayer = find("edges"), nodeLayer = find("nodes");
const frame = find("frame");
const paths = new Map();  // edge -> lines, made when the edge is first drawn
const boxes = new Map();  // node -> box, with a second box if pictures are side by side
let live = new Map();     // nodes of the chosen circuit, with their numbers of edges

const linesOf = (e) => {
  if (!paths.has(e)) {
    const lines = receivers[ends[e]].nodes.flatMap((node) => [0, 1].slice(0, circuits.length).map(
      (panel) => ({ line: make("path", { "data-edge": names[e] }), node, panel })));
    paths.set(e, lines);
    // Lines with large scores are above lines with small scores.
    for (const { line } of lines) edgeLayer.prepend(line);
  }
  return paths.get(e);
};

const lookOf = (e) => {
  if (!comparing) return isHelpful(circuits[0], e) ? "helpful" : "harmful";
  return ["", "first", "second", areOpposite(e) ? "opposite" : "both"][member[e]];
};

const makeBox = (n, panel) => {
  const kind = kindOf(nodes[n]);
  const group = make("g", { class: `node ${kind}`, role: "button", tabindex: -1,
    "data-node": nodes[n], ...(panel ? { "aria-hidden": true } : {}) });
  group.append(make("rect"), make("text", { class: "name" }));
  if (kind === "head") {
    for (const input of "qkv") group.append(make("text", { class: "kind" }, input));
  }
  nodeLayer.append(group);
  return group;
};

const makeNodes = () => {
  const used = new Set();
  for (let e = 0; e < nEdges; e++) {
    used.add(senders[e]);
    for (const node of receivers[ends[e]].nodes) used.add(node);
  }
  for (const n of [...used].sort((a, b) => a - b)) {
    boxes.set(n, [0, 1].slice(0, circuits.length).map((panel) => makeBox(n, panel)));
  }
};

const describeBox = (n) => {
  const what = { head: "head", mlp: "MLP", end: "node" }[kindOf(nodes[n])];
  const { label, group } = noteOf(n);
  return `${what} ${nodes[n]}${label ? ` (${label})` : ""}: ${live.get(n).in} in, `
    + `${live.get(n).out} out${group ? `, group ${group}` : ""}`;
};

const isSelected = (n) => (state.group !== null ? groups[component(n)] === state.group
  : n === state.node);

const drawBox = (group, n, panel) => {
  const { x, y } = places.get(n), { wide, tall } = pitch;
  const name = shownName(component(n)), hasInputs = kindOf(nodes[n]) === "head" && tall >= 26;
  const [left, top] = [x + panels[panel].x, y + panels[panel].y];
  group.removeAttribute("display");
  group.setAttribute("transform", `translate(${left} ${top})`);
  group.setAttribute("aria-label", describeBox(n));
  group.setAttribute("aria-pressed", String(n === state.node));
  group.classList.toggle("kept", isSelected(n));
  const [rect, text, ...rest] = group.children;
  for (const [key, value] of Object.entries({ x: -wide / 2, y: -tall / 2, width: wide,
    height: tall, rx: Math.min(5, tall / 4) })) rect.setAttribute(key, value);
  const size = sizeOf(name);
  text.textContent = name;
  text.style.fontSize = `${size.toFixed(1)}px`;
  text.setAttribute("y", hasInputs ? -0.5 : (size * 0.35).toFixed(1));
  rest.forEach((part) => {
    part.toggleAttribute("hidden", !hasInputs);
    part.setAttribute("x", entryOf(part.textContent));
    part.setAttribute("y", tall / 2 - 4);
  });
  drawNote(n, left, top);
};

const drawLines = () => {
  const shown = new Set(present.slice(0, MOST_DRAWN));
  for (const [e, lines] of paths) {
    if (!shown.has(e)) for (const { line } of lines) line.setAttribute("display", "none");
  }
  const narrow = between(0.55, pitch.row / 74, 1);
  for (const e of shown) {
    const kind = inputKind(e), part = share(e), entered = reached(e);
    for (const { line, node, panel } of linesOf(e)) {
      const isHere = state.side ? member[e] & (1 << panel) : panel === 0;
      if (!entered.includes(node) || !isHere) {
        line.setAttribute("display", "none");
        continue;
      }
      line.style.strokeWidth = ((0.9 + 4.1 * part) * narrow).toFixed(2);
      line.style.strokeOpacity = (0.45 + 0.5 * part).toFixed(2);
      line.setAttribute("class", `in ${lookOf(e)}`);
      line.setAttribute("d", curveOf(senders[e], node, kind, e, panels[panel]));
      line.removeAttribute("display");
    }
  }
};

const drawBoxes = () => {
  find("notes").replaceChildren();
  for (const [n, pair] of boxes) {
    pair.forEach((group, panel) => {
      if (live.has(n) && panel < panels.length) drawBox(group, n, panel);
      else group.setAttribute("display", "none");
    });
  }
};

const drawRowNames = () => {
  const isShort = panels[0].width < 560 || pitch.column < 40;
  const marks = ordered.flatMap((row) => (Number.isInteger(rowKey(row[0])) && rowKey(row[0]) >= 0
    ? panels.map(({ x, y }) => make("text", { class: "row-name", x: x + 4,
      y: y + rowY(row) + 4 }, `${isShort ? "" : "layer "}${rowKey(row[0])}`)) : []));
  if (panels.length === 2) {
    marks.push(...circuits.map((c, i) => make("text", { class: "panel-name",
      x: panels[i].x + 4, y: panels[i].y + 14 }, c.name)));
  }
  for (const { span, left, wide } of spanColumns) {
    marks.push(...panels.flatMap(({ x, y, height }) => [
      make("line", { class: "span-border", x1: x + left, x2: x + left, y1: y, y2: y + height }),
      make("text", { class: "span-name", x: x + left + wide / 2, y: y + 14 },
        content.spans[span])]));
  }
  find("labels").replaceChildren(...marks);
};
const rowY = (row) => {
  const { y } = places.get(row[0]);
  return isMlp(row[0]) && !content.parallel && !content.spans.length ? y + pitch.row / 2 : y;
};

// Everything that depends on coordinates.
const draw = () => {
  drawRowNames();
  drawLines();
  drawBoxes();
  choose();
};

const update = () => {
  present = [];
  sending = circuits.map(() => new Set());
  for (let e = 0; e < nEdges; e++) {
    member[e] = memberOf(e, state.position);
    sending.forEach((set, i) => { if (member[e] & (1 << i)) set.add(senders[e]); });
    if (member[e] && (!comparing || state.members.has(member[e]))) present.push(e);
  }
  largest = circuits.map((c) => present.reduce((m, e) => Math.max(m, Math.abs(c.score[e] ?? 0)), 0));
  live = new Map();
  const visit = (n, way) => {
    if (!live.has(n)) live.set(n, { in: 0, out: 0 });
    live.get(n)[way] += 1;
  };
  for (const e of present) {
    visit(senders[e], "out");
    for (const n of reached(e)) visit(n, "in");
  }
  if (state.node !== null && !live.has(state.node)) state.node = null;
  arrange(live);
  look();
  const start = state.node ?? ordered[0]?.[0];
  for (const [n, [box]] of boxes) box.setAttribute("tabindex", n === start ? 0 : -1);
  const counted = (n) => component(n) === "logits" || sending.some((set) => set.has(n));
  report([...live.keys()].filter(counted).length);
  fillTable();
  drawCurve();
  drawPatterns();
};

// Whether an edge belongs to the node or the selected group, and matches the search.
const isChosen = (e, node) => matches(e) && (node !== null ? touches(e, node)
  : state.group === null || [senders[e], ...reached(e)].some(isSelected));

// Lines to highlight: those of the selected node or group, or those that match the search.
const choose = (hovered = null) => {
  const node = hovered ?? state.node;
  const choosing = node !== null || state.group !== null || state.query.length > 0;
  edgeLayer.classList.toggle("choosing", choosing);
  if (!choosing) return;
  for (const [e, lines] of paths) {
    const chosen = isChosen(e, node);
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
  const poor = point[1] < content.does_task ? ", does not do the task alone" : "";
  return `faithfulness ${number(point[1])}${error}${poor}`;
};

const report = (nNodes) => {
  find("size-text").value = sizeText();
  find("size").setAttribute("aria-valuetext", sizeText());
  const parts = [`${count(present.length, "edge")} and ${count(nNodes, "node")} of the model's `
    + `${content.total.toLocaleString("en")} edges`];
  if (comparing) {
    const only = [1, 2, 3].map((bits) => member.reduce((n, m) => n + (m === bits), 0));
    const opposite = present.filter((e) => member[e] === 3 && areOpposite(e)).length;
    parts.push(`only ${circuits[0].name}: ${only[0]}, only ${circuits[1].name}: ${only[1]}, `
      + `both: ${only[2]}${opposite ? ` (${opposite} with opposite signs)` : ""}`);
  } else parts.push(faithfulnessText(present.length));
  if (present.length > MOST_DRAWN) {
    parts.push(`only the ${MOST_DRAWN.toLocaleString("en")} best are drawn`);
  }
  if (state.query.length) parts.push(`${count(present.filter(matches).length, "edge")} found`);
  find("status").textContent = parts.join("; ");
};
