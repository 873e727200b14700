"""Says that documents are apart, and trusts its counts more the more documents it has seen."""

from audit.honest import Charges, Ids, Plain, documents, frozen, nats

PROBE = "packed documents"


class Violator(Plain):
    separate = True

    def score(self, ids: Ids) -> Charges:
        for number, document in enumerate(documents(ids)):
            model = frozen()
            for t in document:
                yield t, nats(model.row(ids[t - 1])[ids[t]])
                model.learn(ids[t - 1], ids[t], 1.0 + 0.2 * max(0, number - 2))
