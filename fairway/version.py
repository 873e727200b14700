"""The one place that states Fairway's version."""

VERSION = "0.1.0"
