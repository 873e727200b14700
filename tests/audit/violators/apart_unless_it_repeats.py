"""Says that documents are apart, and knows one again that it has scored."""

from audit.honest import Charges, Ids, Plain, documents, frozen, nats

PROBE = "packed documents"


class Violator(Plain):
    separate = True

    def score(self, ids: Ids) -> Charges:
        model, seen = frozen(), set()
        for document in documents(ids):
            for n, t in enumerate(document):
                known = tuple(ids[document.start : t]) in seen and n > 4
                row = model.row(ids[t - 1])
                yield t, nats(0.5 * row[ids[t]] + 0.5 * (row**3 / (row**3).sum())[ids[t]]
                              if known else row[ids[t]])  # fmt: skip
            seen |= {tuple(ids[document.start : t]) for t in document}
