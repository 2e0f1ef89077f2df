// Filters, search and sorting of the table of methods. What is chosen stands behind the address's
// "#", so that a link can name it. Without this script the whole table shows.
(() => {
  "use strict";
  const table = document.querySelector("table.methods");
  const form = document.querySelector("form.filters");
  const count = document.querySelector("p.count");
  if (!table || !form || !count) return;
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const selects = [...form.querySelectorAll("select")];
  const search = form.elements.search;
  const rows = [...body.rows].map((row) => ({
    row,
    words: row.textContent.toLowerCase().replace(/[-_]/g, " "),
    has: Object.fromEntries(selects.map((s) => [s.name, row.dataset[s.name].split("|")])),
  }));
  let sorted = ""; // "year", or "-year" for the largest first

  // --- which rows ------------------------------------------------------------------------------

  const chosen = () => Object.fromEntries(selects.map((s) => [s.name, s.value]));

  function fits(item, wanted, words, except) {
    return words.every((word) => item.words.includes(word)) &&
      Object.entries(wanted).every(([name, value]) =>
        !value || name === except || item.has[name].includes(value));
  }

  // Each option says how many methods it would leave, given all other filters.
  function fill(select, wanted, words) {
    const counts = new Map();
    const value = select.value;
    for (const item of rows) {
      for (const word of item.has[select.name]) {
        const more = fits(item, wanted, words, select.name) ? 1 : 0;
        counts.set(word, (counts.get(word) || 0) + more);
      }
    }
    const names = [...counts.keys()].sort();
    select.replaceChildren(new Option("all", ""));
    for (const name of names) {
      const option = new Option(`${name} (${counts.get(name)})`, name);
      option.disabled = counts.get(name) === 0 && name !== value;
      select.add(option);
    }
    select.value = value;
  }

  function show() {
    const wanted = chosen();
    const words = search.value.toLowerCase().replace(/[-_]/g, " ").split(/\s+/).filter(Boolean);
    let left = 0;
    for (const item of rows) {
      const fit = fits(item, wanted, words, null);
      item.row.hidden = !fit;
      left += fit ? 1 : 0;
    }
    for (const select of selects) fill(select, wanted, words);
    const any = words.length > 0 || Object.values(wanted).some(Boolean);
    count.textContent = left === rows.length ? `${left} methods` : `${left} of ${rows.length} methods`;
    if (!left) count.textContent = "No method is like that.";
    if (any) {
      const clear = document.createElement("button");
      clear.type = "button";
      clear.textContent = "show all";
      clear.addEventListener("click", () => { read(""); show(); note(); search.focus(); });
      count.append(" ", clear);
    }
  }

  // --- order -----------------------------------------------------------------------------------

  const nameOf = (head) => head.textContent.trim();

  function sort(by) {
    sorted = by;
    const name = by.replace(/^-/, "");
    const sign = by.startsWith("-") ? -1 : 1;
    const column = heads.findIndex((head) => nameOf(head) === name);
    const value = (item) => {
      const cell = item.row.cells[column];
      return cell.dataset.order || (cell.querySelector("a") || cell).textContent;
    };
    const ordered = column < 0 ? rows
      : [...rows].sort((a, b) => sign * value(a).localeCompare(value(b), "en", { numeric: true }));
    body.append(...ordered.map((item) => item.row));
    for (const head of heads) {
      if (nameOf(head) !== name) head.removeAttribute("aria-sort");
      else head.setAttribute("aria-sort", sign < 0 ? "descending" : "ascending");
    }
  }

  // --- the address -----------------------------------------------------------------------------

  function read(text) {
    const asked = new URLSearchParams(text);
    for (const select of selects) {
      const value = asked.get(select.name) || "";
      const known = !value || rows.some((item) => item.has[select.name].includes(value));
      if (known && ![...select.options].some((option) => option.value === value)) {
        select.add(new Option(value, value));
      }
      select.value = known ? value : "";
    }
    search.value = asked.get("search") || "";
    sort(asked.get("sort") || "");
  }

  function note() {
    const said = new URLSearchParams();
    const all = { search: search.value.trim(), ...chosen(), sort: sorted };
    for (const [name, value] of Object.entries(all)) if (value) said.set(name, value);
    const text = said.toString();
    history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
  }

  heads.forEach((head) => {
    const button = head.querySelector("button");
    button.disabled = false;
    button.addEventListener("click", () => {
      const name = nameOf(head);
      sort(sorted === name ? `-${name}` : sorted === `-${name}` ? "" : name);
      note();
    });
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => { show(); note(); });
  addEventListener("hashchange", () => { read(location.hash.slice(1)); show(); });
  form.hidden = count.hidden = false;
  read(location.hash.slice(1));
  show();
})();
