// Attention of a head: its pattern, the senders that its attention logit is composed of, and what
// the head moves.

let example = 0;  // which of a head's examples is shown

const patternOf = ({ tokens, weights }) => {
  const n = tokens.length, cell = Math.max(9, Math.min(22, 300 / n)), left = 78;
  const size = left + n * cell + 4;
  const svg = make("svg", { viewBox: `0 0 ${size} ${size}`, width: Math.min(size, 400), role: "img",
    "aria-label": `Attention among ${n} tokens: ${tokens.map((t, i) => {
      const most = weights[i].indexOf(Math.max(...weights[i]));
      return `${t} to ${tokens[most]}`;
    }).join(", ")}` });
  weights.forEach((row, i) => {
    const short = (token) => (token.length > 10 ? `${token.slice(0, 9)}…` : token);
    svg.append(make("text", { x: left - 5, y: left + (i + 0.7) * cell, "text-anchor": "end" },
      short(tokens[i])));
    svg.append(make("text", { transform: `translate(${left + (i + 0.7) * cell} ${left - 5}) `
      + "rotate(-90)" }, short(tokens[i])));
    row.forEach((weight, j) => {
      const square = make("rect", { class: "weight", x: left + j * cell, y: left + i * cell,
        width: cell - 0.5, height: cell - 0.5 });
      square.style.fillOpacity = weight / 100;
      square.append(make("title", {}, `${tokens[i]} reads ${tokens[j]}: ${weight / 100}`));
      svg.append(square);
    });
  });
  return svg;
};

// A sender that is in the picture becomes a button that selects it.
const senderCell = (name) => {
  const n = nodes.indexOf(name);
  if (!live.has(n)) return tag("td", { textContent: name });
  const button = tag("button", { type: "button", textContent: name });
  button.addEventListener("click", () => { keep(n); reveal(n); });
  return tag("td", {}, button);
};

// Rows of [cells, value], each with a bar from zero to the right or, if negative, to the left.
const bars = (title, heads, rows) => {
  const most = Math.max(...rows.map((row) => Math.abs(row.at(-1))), 1e-12);
  const table = tag("table", { className: "bars" }, tag("caption", { textContent: title }));
  const head = tag("tr", {}, ...[...heads, "share", ""].map((textContent) =>
    tag("th", { scope: "col", textContent })));
  head.lastChild.setAttribute("aria-hidden", "true");
  head.lastChild.previousSibling.className = "number";
  const body = rows.map((row) => {
    const value = row.at(-1), bar = tag("span", { className: value < 0 ? "minus" : "plus" });
    bar.style.width = `${(50 * Math.abs(value)) / most}%`;
    const cells = row.slice(0, -1).map((cell, i) => (heads[i].startsWith("token")
      ? tag("td", { textContent: cell }) : senderCell(cell)));
    const drawn = tag("td", { className: "bar" }, bar);
    drawn.setAttribute("aria-hidden", "true");
    return tag("tr", {}, ...cells, tag("td", { className: "number",
      textContent: `${value > 0 ? "+" : ""}${number(value)}` }), drawn);
  });
  table.append(tag("thead", {}, head), tag("tbody", {}, ...body));
  return table;
};

const whyOf = (name, { tokens, why }) => {
  const [from, to] = [tokens[why.query], tokens[why.key]].map((token) => `“${token.trim()}”`);
  const cap = why.softcap === null ? "" : `, before a soft cap of ${why.softcap}`;
  const intro = `From ${from} (token ${why.query}), ${name} looks most to ${to} `
    + `(token ${why.key}), with weight ${why.weight}. Its attention logit there is `
    + `${number(why.logit)}${cap}: a sum over what both tokens have read from earlier nodes.`;
  const moved = `What ${name} moves to ${from}: ${why.moved > 0 ? "+" : ""}${number(why.moved)} `
    + "in logits, correct minus incorrect answer";
  return tag("section", { className: "why" }, tag("h2", { textContent: "Why it looks there" }),
    tag("p", { textContent: intro }),
    bars(`Key side: senders at ${to}, the key token`, ["sender"], why.by_key),
    bars(`Query side: senders at ${from}, the query token`, ["sender"], why.by_query),
    bars("Largest pairs", ["query side", "key side"], why.pairs),
    bars(moved, ["token read", "sender"], why.by_answers));
};

const drawPatterns = () => {
  const panel = find("patterns"), shown = state.node === null ? undefined : content.patterns[component(state.node)];
  panel.hidden = !shown;
  if (!shown) {
    const heads = Object.keys(content.patterns).filter(
      (name) => [...live.keys()].some((n) => component(n) === name));
    const hint = `Attention patterns are available for ${heads.slice(0, 6).join(", ")}`
      + `${heads.length > 6 ? " and others" : ""}: select a head.`;
    panel.hidden = !heads.length;
    panel.replaceChildren(tag("figcaption", { className: "small", textContent: hint }));
    return;
  }
  example = Math.min(example, shown.length - 1);
  const name = component(state.node);
  const caption = tag("figcaption", { className: "small",
    textContent: `Attention of ${name}: rows are queries, columns are keys. ` });
  const choice = tag("select");
  choice.setAttribute("aria-label", "Example");
  choice.append(...shown.map((_, i) => tag("option", { value: i,
    textContent: `example ${i + 1} of ${shown.length}`, selected: i === example })));
  choice.addEventListener("change", () => { example = Number(choice.value); drawPatterns(); });
  caption.append(choice);
  panel.replaceChildren(caption, patternOf(shown[example]));
  if (shown[example].why) panel.append(whyOf(name, shown[example]));
};
