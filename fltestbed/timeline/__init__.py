"""Conditions that change while a run trains: `schema` says what can be written, `schedule` draws and checks it for a
testbed, `driver` carries it out beside the run."""
