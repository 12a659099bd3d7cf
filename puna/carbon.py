"""Energy and carbon of a computation (paper section 6).

    MWh = GPU-hours × watts × PUE / 10⁶        tCO2eq = MWh × intensity

The paper's PUE (power usage effectiveness of the data centre) is 1.1, its intensity that of the US grid.
"""

from dataclasses import dataclass

PUE = 1.1
INTENSITY = 0.385
"""tCO2eq per MWh, which is kgCO2eq per kWh."""


@dataclass(frozen=True)
class Footprint:
    """The energy and the emissions of some GPU-hours."""

    gpu_hours: float
    watts: float
    """Power of one GPU under load."""
    pue: float = PUE
    intensity: float = INTENSITY
    """tCO2eq per MWh."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the first invalid field."""
        for name, least in (("gpu_hours", 0.0), ("watts", 0.0), ("pue", 1.0), ("intensity", 0.0)):
            if not getattr(self, name) >= least:  # also NaN
                raise ValueError(f"{name} is {getattr(self, name):g}; it must be at least {least:g}")

    @property
    def mwh(self) -> float:
        """Energy, in MWh, with what the data centre adds."""
        return self.gpu_hours * self.watts * self.pue / 1e6

    @property
    def tco2eq(self) -> float:
        """Emissions, in tonnes of CO2 equivalent."""
        return self.mwh * self.intensity
