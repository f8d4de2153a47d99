// ---- hovering, keys --------------------------------------------------------------------------

const tip = find("tip");
const showTip = (text, x, y) => {
  tip.textContent = text;
  tip.hidden = false;
  const { width: w, height: h } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - w - 6))}px`;
  tip.style.top = `${Math.max(4, Math.min(y + 14, innerHeight - h - 6))}px`;
};
const describe = (e) => [names[e], ...circuits.map((c) => {
  const error = c.error ? ` ± ${number(c.error[e])}` : "";
  const of = comparing ? `${c.name}: ` : "";
  return `${of}score ${number(c.score[e])}${error} (${exactness(c, e)})`;
}), ...(comparing ? [`in ${membership(e)}`] : [])].join("\n");
const describeNode = (n) => {
  const scores = circuits.filter((c) => c.nodes && n < c.nodes.length).map(
    (c) => `${comparing ? `${c.name}: ` : ""}node score ${number(c.nodes[n])}`);
  return [boxes.get(n).getAttribute("aria-label"), ...scores].join("\n");
};
const edgeOf = new Map(names.map((name, e) => [name, e]));

const keep = (n) => {
  if (!boxes.has(n)) return;
  state.node = state.node === n ? null : n;
  state.rows = ROWS;
  for (const [other, box] of boxes) {
    box.classList.toggle("kept", other === state.node);
    box.setAttribute("aria-pressed", String(other === state.node));
  }
  choose();
  fillTable();
  drawPatterns();
};

const nodeAt = (target) => {
  const group = target.closest?.(".node");
  return group ? nodes.indexOf(group.dataset.node) : null;
};

// Lines are thin: what is within three pixels counts.
const lineAt = (x, y) => {
  for (const [dx, dy] of [[0, 0], [3, 0], [-3, 0], [0, 3], [0, -3]]) {
    const edge = document.elementFromPoint(x + dx, y + dy)?.dataset?.edge;
    if (edge !== undefined && edgeOf.has(edge)) return edgeOf.get(edge);
  }
  return null;
};

const listen = () => {
  drawing.addEventListener("mousemove", (event) => {
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
    if (n !== null) keep(n);
  });
  nodeLayer.addEventListener("focusin", (event) => {
    const n = nodeAt(event.target);
    if (n === null) return;
    choose(n);
    const { right, bottom } = boxes.get(n).getBoundingClientRect();
    showTip(describeNode(n), right, bottom);
  });
  nodeLayer.addEventListener("focusout", () => { tip.hidden = true; choose(); });
  nodeLayer.addEventListener("keydown", walk);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && state.node !== null) keep(state.node);
  });
  const slider = find("size");
  slider.max = positions.length - 1;
  slider.value = initial;
  find("size-control").hidden = positions.length < 2;
  slider.addEventListener("input", () => {
    state.position = positions[Number(slider.value)];
    state.rows = ROWS;
    update();
  });
  find("search").addEventListener("input", (event) => {
    state.query = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    state.rows = ROWS;
    update();
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
    boxes.get(n).setAttribute("tabindex", -1);
    boxes.get(next).setAttribute("tabindex", 0);
    boxes.get(next).focus();
  }
};

// ---- the words around it ---------------------------------------------------------------------

const writeLegend = () => {
  const better = circuits[0].better;
  const effect = (lower) => (better === null
    ? `corrupting it ${lower ? "lowers" : "raises"} the metric`
    : lower === better ? "helpful: corrupting it makes the metric worse"
      : "harmful: corrupting it makes the metric better");
  const colours = comparing
    ? [["low", `only ${circuits[0].name}`], ["high", `only ${circuits[1].name}`],
      ["both", "both"]]
    : [["low", effect(true)], ["high", effect(false)]];
  const item = (style, text) => {
    const line = tag("li");
    const svg = make("svg", { width: 34, height: 8, "aria-hidden": true });
    svg.append(make("path", { d: "M1 4H33", style: `fill:none;stroke-width:3;${style}` }));
    line.append(svg, text);
    return line;
  };
  find("legend").append(
    ...colours.map(([colour, text]) => item(`stroke:var(--${colour})`, text)),
    ...[["q", ""], ["k", "stroke-dasharray:9 4"], ["v", "stroke-dasharray:2.5 3"]].map(
      ([kind, dash]) => item(`stroke:var(--faint);${dash}`, `into ${kind}`)),
    tag("li", { textContent: "width: size of the score" }));
};

const writeFacts = () => {
  const of = circuits.map((c) => (comparing ? `${c.name}: ` : "") + (c.facts.length
    ? c.facts.map(([key, value]) => `${key} ${value}`).join(", ")
    : "where the scores come from is not known"));
  const way = sizes.length
    ? `circuits: ${content.selection} by ${content.by}, then pruned` : "";
  find("facts").textContent = [...of, way].filter(Boolean).join("; ");
  if (!comparing) return;
  const members = find("members");
  [[1, `only ${circuits[0].name}`], [2, `only ${circuits[1].name}`], [3, "both"]].forEach(
    ([bits, text]) => {
      const label = tag("label"), box = tag("input", { type: "checkbox", checked: true });
      box.addEventListener("change", () => {
        if (box.checked) state.members.add(bits);
        else state.members.delete(bits);
        update();
      });
      label.append(box, ` ${text}`);
      members.append(label);
    });
  members.hidden = false;
};

writeFacts();
writeLegend();
makeColumns();
makeNodes();
listen();
update();
drawPatterns();
