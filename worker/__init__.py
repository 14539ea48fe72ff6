"""The part of Trainhop that runs on a training machine. It starts a lease, trains, saves and hands off."""
