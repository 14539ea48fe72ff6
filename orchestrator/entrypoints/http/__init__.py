"""The web application that API and pages share: log-ins, limits, errors, streams of events."""
