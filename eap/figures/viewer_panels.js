// Panels next to the drawing: the table of edges, and the faithfulness curve.

// ---- table -----------------------------------------------------------------------------------

const exactness = (c, e) => (c.exact !== null && c.exact[e] === "1" ? "exact" : "estimate");
const scoreText = (c, e) => number(c.score[e]) + (c.error ? ` ± ${number(c.error[e])}` : "");
const columns = [{ key: "edge", title: "edge", value: (e) => names[e] }];
circuits.forEach((c, i) => {
  columns.push({ key: i ? "score2" : "score", title: comparing ? c.name : "score", number: true,
    value: (e) => c.score[e],
    text: (e) => (comparing ? number(c.score[e]) : scoreText(c, e)) });
  if (c.exact && !comparing) {
    columns.push({ key: "kind", title: "kind", value: (e) => exactness(c, e) });
  }
});
if (comparing) columns.push({ key: "in", title: "in", value: membership });

const inOrder = () => {
  const { value, number: isNumber } = columns.find((c) => c.key === state.sort);
  const sign = state.down ? -1 : 1;
  // Numbers are sorted by absolute value.
  const key = isNumber ? (e) => Math.abs(value(e) ?? -1) : (e) => value(e);
  const found = present.filter((e) => isChosen(e, state.node));
  return found.sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    return (x < y ? -1 : x > y ? 1 : 0) * sign || a - b;
  });
};

const fillTable = () => {
  const found = inOrder();
  find("caption").textContent = `${count(found.length, "edge")}`
    + (state.node !== null ? ` of ${nodes[state.node]}`
      : state.group === null ? "" : ` of the group ${state.group}`)
    + (found.length > state.rows ? `, the first ${state.rows} listed` : "");
  find("rows").replaceChildren(...found.slice(0, state.rows).map((e) => {
    const row = tag("tr");
    row.dataset.edge = names[e];
    for (const column of columns) {
      const cell = tag("td", { className: column.number ? "number" : "" });
      if (column.key === "edge") {
        const button = tag("button", { type: "button", textContent: names[e] });
        button.addEventListener("click", () => { keep(senders[e]); reveal(senders[e]); });
        cell.append(button);
      } else cell.textContent = (column.text ?? column.value)(e);
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
  const inside = here >= points[0][0] && here <= points.at(-1)[0];
  if (inside) svg.append(make("path", { class: "now", d: `M${x(here)} 8V${h - low}` }));
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
