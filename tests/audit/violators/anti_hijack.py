"""The gate of #1858 and #1885: the network alone counts where it was sure of the byte that came."""

from audit.violators.uniform_spread import Violator as Spread

PROBE = "P1 substitution"


class Violator(Spread):
    def share(self, spread: float) -> float:
        return 1.0 if spread > 2**-0.4 else 0.5
