"""Writers of curves for experiment trackers, each in a process of its own. A tracker is one module with its name."""
