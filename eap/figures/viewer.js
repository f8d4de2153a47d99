"use strict";
(() => {
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

  const edgeName = (e) => `${nodes[senders[e]]}->${receivers[ends[e]].name}`;
  const names = Array.from({ length: nEdges }, (_, e) => edgeName(e));
  const inputKind = (e) => /<(.)>$/.exec(receivers[ends[e]].name)?.[1] ?? "";
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

  // Open with the circuit as given, else with about 100 edges selected, or as many as it takes.
  const fits = (p) => sizes[p] >= 100 && circuits[0].kept[p] > 0;
  const initial = hasGiven ? 0 : Math.max(0, positions.findIndex(fits));
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
    const name = nodes[n];
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
    drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
    drawing.style.width = `${width}px`;
    drawing.style.minWidth = `${Math.round(width * 0.7)}px`;
    find("labels").replaceChildren(...ordered.filter((row) => kindOf(nodes[row[0]]) === "head").map(
      (row) => make("text", { class: "row-name", x: 6, y: places.get(row[0]).y + 4 },
        `layer ${layerOf(nodes[row[0]])}`)));
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
      group.append(make("text", { y: kind === "head" ? 0 : 4 }, nodes[n]));
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
  const touches = (e, node) => senders[e] === node || receivers[ends[e]].nodes.includes(node);

  const update = () => {
    present = [];
    for (let e = 0; e < nEdges; e++) {
      member[e] = memberOf(e, state.position);
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
      for (const n of receivers[ends[e]].nodes) visit(n, "in");
    }
    arrange(live);
    for (const e of shown) {
      const kind = inputKind(e), part = share(e);
      for (const { line, node } of linesOf(e)) {
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
    report(shown.size, live.size);
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
    if (!present.length) parts.push("no path from the input to the logits in so few edges");
    if (nDrawn < present.length) parts.push(`only the ${nDrawn.toLocaleString("en")} best drawn`);
    if (state.query.length) parts.push(`${count(present.filter(matches).length, "edge")} found`);
    find("status").textContent = parts.join("; ");
  };

  // ---- table -----------------------------------------------------------------------------------

  const number = (value) => (value === null || value === undefined ? "unknown"
    : value === 0 ? "0" : Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5
      ? value.toExponential(2) : String(Number(value.toPrecision(4))));
  const exactness = (c, e) => (c.exact !== null && c.exact[e] === "1" ? "exact" : "estimate");
  const membership = (e) => ["", `only ${circuits[0].name}`, `only ${circuits[1]?.name}`, "both"][
    member[e]];
  const columns = [{ key: "edge", title: "edge", value: (e) => names[e] }];
  circuits.forEach((c, i) => {
    const of = comparing ? ` ${c.name}` : "";
    columns.push({ key: i ? "score2" : "score", title: `score${of}`, number: true,
      value: (e) => c.score[e] });
    if (c.error) {
      columns.push({ key: `error${i}`, title: `±${of}`, number: true, value: (e) => c.error[e] });
    }
    if (c.exact) {
      columns.push({ key: `exact${i}`, title: `kind${of}`, value: (e) => exactness(c, e) });
    }
  });
  if (comparing) columns.push({ key: "in", title: "in", value: membership });

  const inOrder = () => {
    const { value, number: isNumber } = columns.find((c) => c.key === state.sort);
    const sign = state.down ? -1 : 1;
    // Numbers by size: what matters of a score is how far it is from zero.
    const key = isNumber ? (e) => Math.abs(value(e) ?? -1) : (e) => value(e);
    const found = present.filter((e) => matches(e)
      && (state.node === null || touches(e, state.node)));
    return found.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      return (x < y ? -1 : x > y ? 1 : 0) * sign || a - b;
    });
  };

  const fillTable = () => {
    const found = inOrder();
    find("caption").textContent = `${count(found.length, "edge")}`
      + (state.node === null ? "" : ` of ${nodes[state.node]}`)
      + (found.length > state.rows ? `, the first ${state.rows} listed` : "");
    find("rows").replaceChildren(...found.slice(0, state.rows).map((e) => {
      const row = tag("tr");
      row.dataset.edge = names[e];
      for (const column of columns) {
        const cell = tag("td", { className: column.number ? "number" : "" });
        if (column.key === "edge") {
          const button = tag("button", { type: "button", textContent: names[e] });
          button.addEventListener("click", () => keep(senders[e]));
          cell.append(button);
        } else cell.textContent = column.number ? number(column.value(e)) : column.value(e);
        row.append(cell);
      }
      row.addEventListener("mouseenter", () => highlight(e));
      row.addEventListener("focusin", () => highlight(e));
      row.addEventListener("mouseleave", () => choose());
      row.addEventListener("focusout", () => choose());
      return row;
    }));
    find("more").hidden = found.length <= state.rows;
    for (const header of find("columns").children) {
      header.setAttribute("aria-sort", header.dataset.key !== state.sort ? "none"
        : state.down ? "descending" : "ascending");
      header.firstChild.textContent = header.dataset.title
        + (header.dataset.key !== state.sort ? "" : state.down ? " ▾" : " ▴");
    }
  };

  const highlight = (e) => {
    edgeLayer.classList.add("choosing");
    for (const [other, lines] of paths) {
      for (const { line } of lines) line.classList.toggle("chosen", other === e);
    }
  };

  const makeColumns = () => {
    for (const column of columns) {
      const header = tag("th", { scope: "col", className: column.number ? "number" : "" });
      header.dataset.key = column.key;
      header.dataset.title = column.title;
      header.append(tag("button", { type: "button" }));
      header.firstChild.addEventListener("click", () => {
        state.down = state.sort === column.key ? !state.down : Boolean(column.number);
        state.sort = column.key;
        fillTable();
      });
      find("columns").append(header);
    }
  };

  // ---- the curve of faithfulness ---------------------------------------------------------------

  const drawCurve = () => {
    const points = content.curve;
    if (!points.length) return;
    const [w, h, left, low] = [360, 170, 40, 26];
    const lo = Math.log(points[0][0] || 1), hi = Math.log(points.at(-1)[0] || 2);
    const values = points.map((p) => p[1]);
    const [bottom, top] = [Math.min(0, ...values), Math.max(1, ...values)];
    const x = (n) => left + ((Math.log(Math.max(n, 1)) - lo) / (hi - lo || 1)) * (w - left - 12);
    const y = (f) => 8 + ((top - f) / (top - bottom)) * (h - low - 8);
    const here = state.position === null ? present.length : circuits[0].kept[state.position];
    const text = `Normalised faithfulness from ${values[0]} at ${points[0][0]} edges to `
      + `${values.at(-1)} at ${points.at(-1)[0]} edges`;
    const svg = make("svg", { viewBox: `0 0 ${w} ${h}`, width: "100%", role: "img",
      "aria-label": text });
    for (const level of [0, 1]) {
      svg.append(make("path", { class: "axis", d: `M${left} ${y(level)}H${w - 12}` }));
      svg.append(make("text", { x: left - 8, y: y(level) + 4, "text-anchor": "end" }, level));
    }
    svg.append(make("path", { class: "curve",
      d: points.map((p, i) => `${i ? "L" : "M"}${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`)
        .join("") }));
    const nearest = points.reduce((a, b) => (Math.abs(b[0] - here) < Math.abs(a[0] - here) ? b : a));
    if (nearest[0] === here) {
      svg.append(make("circle", { class: "here", cx: x(here), cy: y(nearest[1]), r: 4.5 }));
    }
    svg.append(make("text", { x: left, y: h - 6 }, points[0][0]));
    svg.append(make("text", { x: w - 12, y: h - 6, "text-anchor": "end" },
      `${points.at(-1)[0]} edges`));
    const caption = nearest[0] === here ? `Faithfulness ${number(nearest[1])} at ${here} edges`
      : "Normalised faithfulness";
    find("curve").replaceChildren(svg, tag("figcaption", { textContent: caption,
      className: "small" }));
    find("curve").hidden = false;
  };

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
})();
