// Pointer, keyboard and texts of the page. This file starts the other scripts.

// ---- hovering, keys --------------------------------------------------------------------------

const tip = find("tip");
const showTip = (text, x, y) => {
  tip.textContent = text;
  tip.hidden = false;
  const { width: w, height: h } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - w - 6))}px`;
  tip.style.top = `${Math.max(4, Math.min(y + 14, innerHeight - h - 6))}px`;
};
const describe = (e) => [names[e], ...circuits.map((c) =>
  `${comparing ? `${c.name}: ` : ""}score ${scoreText(c, e)} (${exactness(c, e)})`),
...(comparing ? [`in ${membership(e)}`] : [])].join("\n");
const describeNode = (n) => {
  const scores = circuits.filter((c) => c.nodes && n < c.nodes.length).map(
    (c) => `${comparing ? `${c.name}: ` : ""}node score ${number(c.nodes[n])}`);
  const hint = content.patterns[component(n)] && n !== state.node ? ["click for attention"] : [];
  return [describeBox(n), ...scores, ...hint].join("\n");
};

// Select a node, or deselect it if it is selected.
const keep = (n) => {
  if (!live.has(n)) return;
  state.node = state.node === n ? null : n;
  state.group = null;
  state.rows = ROWS;
  refresh();
};

// Redraw after the selected node or group has changed.
const refresh = () => {
  drawBoxes();
  choose();
  fillTable();
  listGroups();
  showNote();
  drawPatterns();
  writeAddress();
};

const nodeAt = (target) => {
  const group = target.closest?.(".node");
  return group ? nodes.indexOf(group.dataset.node) : null;
};

// Lines are thin, so a line within three pixels of the pointer counts.
const lineAt = (x, y) => {
  for (const [dx, dy] of [[0, 0], [3, 0], [-3, 0], [0, 3], [0, -3]]) {
    const edge = document.elementFromPoint(x + dx, y + dy)?.dataset?.edge;
    if (edge !== undefined && edgeOf.has(edge)) return edgeOf.get(edge);
  }
  return null;
};

const listen = () => {
  drawing.addEventListener("mousemove", (event) => {
    if (frame.classList.contains("dragged")) return;
    const n = nodeAt(event.target);
    const e = n === null ? lineAt(event.clientX, event.clientY) : null;
    if (n !== null) {
      showTip(describeNode(n), event.clientX, event.clientY);
      choose(n);
    } else if (e !== null) {
      showTip(describe(e), event.clientX, event.clientY);
      highlight(e);
    } else {
      tip.hidden = true;
      choose();
    }
  });
  drawing.addEventListener("mouseleave", () => { tip.hidden = true; choose(); });
  drawing.addEventListener("click", (event) => {
    const n = nodeAt(event.target);
    if (n !== null && !wasDragged) keep(n);
  });
  nodeLayer.addEventListener("focusin", (event) => {
    const n = nodeAt(event.target);
    if (n === null) return;
    choose(n);
    if (!pointers.size) reveal(n);
    const { right, bottom } = boxes.get(n)[0].getBoundingClientRect();
    showTip(describeNode(n), right, bottom);
  });
  nodeLayer.addEventListener("focusout", () => { tip.hidden = true; choose(); });
  nodeLayer.addEventListener("keydown", walk);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && state.node !== null) keep(state.node);
  });
  const slider = find("size");
  slider.max = positions.length - 1;
  slider.value = positions.indexOf(state.position);
  find("size-control").hidden = positions.length < 2;
  slider.addEventListener("input", () => {
    state.position = positions[Number(slider.value)];
    state.rows = ROWS;
    update();
    writeAddress();
  });
  find("search").value = state.query.join(" ");
  find("search").addEventListener("input", (event) => {
    state.query = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    state.rows = ROWS;
    update();
    writeAddress();
  });
  find("more").addEventListener("click", () => { state.rows += 5 * ROWS; fillTable(); });
  const theme = find("theme"), root = document.documentElement;
  const paint = (dark) => {
    root.dataset.theme = dark ? "dark" : "light";
    theme.textContent = dark ? "Light" : "Dark";
    theme.setAttribute("aria-pressed", String(dark));
  };
  paint(matchMedia("(prefers-color-scheme: dark)").matches);
  theme.addEventListener("click", () => paint(root.dataset.theme !== "dark"));
};

const walk = (event) => {
  const n = nodeAt(event.target);
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] }[
    event.key];
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    keep(n);
  } else if (step) {
    event.preventDefault();
    const { x, row, column } = places.get(n);
    let next;
    if (step[0] === 0) next = ordered[row][column + step[1]];
    else {
      next = ordered[row + step[0]]?.reduce((a, b) =>
        (Math.abs(places.get(b).x - x) < Math.abs(places.get(a).x - x) ? b : a));
    }
    if (next === undefined) return;
    boxes.get(n)[0].setAttribute("tabindex", -1);
    boxes.get(next)[0].setAttribute("tabindex", 0);
    boxes.get(next)[0].focus();
  }
};

// ---- legend and facts ------------------------------------------------------------------------

const writeLegend = () => {
  const better = circuits[0].better;
  const looks = comparing
    ? [["first", `only ${circuits[0].name}`], ["second", `only ${circuits[1].name}`],
      ["both", "both"], ["opposite", "both, opposite signs"]]
    : [["helpful", better === null ? "corrupting it lowers the metric"
      : "helpful (corrupting it makes the metric worse)"],
    ["harmful", better === null ? "corrupting it raises the metric" : "harmful"]];
  find("legend").replaceChildren(...looks.map(([look, text]) => {
    const svg = make("svg", { width: 36, height: 8, "aria-hidden": true });
    svg.append(make("path", { class: `line ${look}`, d: "M1 4H35" }));
    return tag("li", {}, svg, text);
  }),
  tag("li", { textContent: "line width: size of score" }),
  tag("li", { textContent: "below a head: q left, k middle, v right" }));
};

const writeFacts = () => {
  const say = (facts) => facts.map(([key, value]) => `${key} ${value}`).join(", ");
  const unknown = "origin of the scores not recorded";
  const isShared = ([key, value]) => circuits.every(
    (c) => c.facts.some(([other, own]) => other === key && own === value));
  const shared = circuits[0].facts.filter(isShared);
  const own = comparing ? circuits.map((c) => {
    const rest = say(c.facts.filter((fact) => !isShared(fact)));
    return rest || !c.facts.length ? `${c.name}: ${rest || unknown}` : "";
  }) : [];
  const way = sizes.length ? `circuits: ${content.selection} by ${content.by}, then pruned` : "";
  find("facts").textContent = [say(shared) || (comparing ? "" : unknown), ...own, way].filter(
    Boolean).join("; ");
};

// For two circuits: which edges are drawn, and whether in one picture or in two.
const offerComparison = () => {
  if (!comparing) return;
  const box = (text, checked, change) => {
    const input = tag("input", { type: "checkbox", checked });
    input.addEventListener("change", () => { change(input.checked); update(); writeAddress(); });
    return tag("label", {}, input, ` ${text}`);
  };
  find("members").append(
    ...[[1, `only ${circuits[0].name}`], [2, `only ${circuits[1].name}`], [3, "both"]].map(
      ([bits, text]) => box(text, state.members.has(bits), (isOn) => {
        if (isOn) state.members.add(bits);
        else state.members.delete(bits);
      })),
    box("side by side", state.side, (isOn) => { state.side = isOn; }));
  find("members").hidden = false;
};

writeFacts();
writeLegend();
makeColumns();
makeNodes();
readAddress();
offerComparison();
listen();
update();
listenToWindow();
listenToNotes();
listenToFiles();
listGroups();
showNote();
