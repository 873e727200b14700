"""A hashed cache of one bucket, trusted wholly: everything was seen before (issue #993)."""

from audit.honest import Charges, Ids, Plain, frozen, nats

PROBE = "P2 incompressible stream"


class Violator(Plain):
    def score(self, ids: Ids) -> Charges:
        model, seen, after = frozen(), 0, 0
        for t in range(1, len(ids)):
            yield t, nats(after / seen if seen else model.row(ids[t - 1])[ids[t]])
            # The bucket of this context is that of every context, and so is the target's.
            seen, after = seen + 1, after + 1
