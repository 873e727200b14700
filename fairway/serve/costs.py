"""POST /costs and GET /documents: the costs of a text for the page, and texts to start with."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fairway.report.html import Html, esc, num
from fairway.report.tokens import View, scale
from fairway.serve.asked import body_of, text_of
from fairway.serve.errors import gone
from fairway.serve.models import Desk, Record, Served
from fairway.serve.watching import GoneError, Watching


async def costs(request: Request) -> Response:
    """Answer POST /costs: HTML of a text coloured by its tokens' costs, by one or two models."""
    desk: Desk = request.app.state.desk
    text, model, beside = text_of(await body_of(request))
    sides = [desk.side(model), *([desk.side(beside)] if beside else [])]
    watching = Watching(desk.ending)
    async with desk.turn(), watching.over(request):
        try:
            return JSONResponse(await desk.run(shown, text, sides, watching))
        except GoneError:
            return gone(desk.ending.is_set())


def shown(text: str, sides: list[Served | Record], watching: Watching) -> dict[str, Any]:
    """Return the content of the page: every side's text, totals and tips, and the list of cells."""
    found = [side.costs(text, watching) for side in sides]
    view, names = View(found), [side.name for side in sides]
    heads = [*names, "difference"] if len(sides) == 2 else ["bits"]
    return {
        "sides": [
            {
                "model": name,
                **{key: side[key] for key in ("bpb", "total_bits", "bytes", "tokens")},
                "totals": view.totals(at),
                "text": view.text(f"side{at}", f"The text by tokens, costs of {name}", at, False),
                "tips": [view.tip(number, at) for number in range(len(view.cells))],
            }
            for at, (name, side) in enumerate(zip(names, found, strict=True))
        ],
        "scale": scale(len(sides) == 2),
        "list": view.list(heads),
        "summary": _summary(names, found),
    }


def _summary(names: list[str], found: list[dict[str, Any]]) -> Html:
    """Return which of two sides has the lower cost, and which sides are records."""
    parts = [_difference(names, found)] if len(names) == 2 else []
    parts += [
        f"<b>{esc(name)}</b> is a record: the costs that this stage of the run stored, with the "
        "context that it had. It has no ranks and no likeliest tokens."
        for name in dict.fromkeys(n for n, side in zip(names, found, strict=True) if _kept(side))
    ]
    return Html(" ".join(parts))


def _kept(side: dict[str, Any]) -> bool:
    return "ranks" not in side


def _difference(names: list[str], found: list[dict[str, Any]]) -> str:
    a, b = (side["total_bits"] for side in found)
    if a == b:
        return "Both have the same cost."
    better, worse = names if a < b else names[::-1]
    return (
        f"<b>{esc(better)}</b> costs {num(abs(a - b), ',.1f', ' bits')} less than "
        f"<b>{esc(worse)}</b>: {num(100 * (1 - min(a, b) / max(a, b)), '.1f', ' %')}."
    )


async def documents(request: Request) -> Response:
    """Answer GET /documents: beginnings of validation documents, or the reason for none."""
    desk: Desk = request.app.state.desk
    return JSONResponse({"documents": await desk.run(desk.documents)})
