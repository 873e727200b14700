"""A page with a table that can be sorted, and the only script that may run on it."""

import base64
import hashlib

from fairway.report.html import HEAD, Html, document, esc

_CSS = """
body { max-width: 84rem; }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--model); outline-offset: 2px; }
th[aria-sort="ascending"] button::after { content: " \\25B2"; }
th[aria-sort="descending"] button::after { content: " \\25BC"; }
"""
# Heads of the first table become buttons that sort its rows; without scripts they stay heads. A
# cell sorts by the exact value of its number, else by its text; cells without a number come last.
_SORT = """
const table = document.querySelector("table"), body = table && table.tBodies[0];
const key = (row, at) => {
  const found = row.cells[at].querySelector("data");
  return found ? Number(found.value) : row.cells[at].textContent;
};
const compare = (a, b, sign) => typeof a !== typeof b
  ? (typeof a === "number" ? -1 : 1)
  : sign * (typeof a === "number" ? a - b : a.localeCompare(b, undefined, {numeric: true}));
if (table) [...table.tHead.rows[0].cells].forEach((head, at) => {
  const button = document.createElement("button");
  button.append(...head.childNodes);
  head.append(button);
  button.onclick = () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const keys = new Map([...body.rows].map((row) => [row, key(row, at)]));
    const order = (a, b) => compare(keys.get(a), keys.get(b), down ? -1 : 1);
    body.append(...[...body.rows].sort(order));
  };
});
const unfold = () => {
  const found = location.hash && document.getElementById(location.hash.slice(1));
  if (found) found.open = true;
};
addEventListener("hashchange", unfold);
unfold();
"""
_DIGEST = base64.b64encode(hashlib.sha256(_SORT.encode()).digest()).decode()
_POLICY = f"; script-src 'sha256-{_DIGEST}'"


def sortable(title: str, css: str, content: Html) -> str:
    """Return a self-contained page; a click or a key on a head of its first table sorts it.

    The page fetches nothing. Only the script for sorting may run, which its digest identifies.
    """
    body = f"<header><h1>{esc(title)}</h1></header>\n{content}<script>{_SORT}</script>\n"
    return document(title, css + _CSS, body, _POLICY)


def is_sortable(head: bytes, title: str) -> bool:
    """Return whether a file begins like such a page with a title that begins with these words."""
    return head.startswith(HEAD.encode()) and f"<title>{title}".encode() in head
