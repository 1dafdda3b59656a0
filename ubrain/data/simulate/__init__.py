"""The simulated crowd: rendered scenes, seen by simulated brains in a simulated scanner."""

from ubrain.data.simulate.crowd import SCANNERS, VERSION, simulate_crowd

__all__ = ["SCANNERS", "VERSION", "simulate_crowd"]
