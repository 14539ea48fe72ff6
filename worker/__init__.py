"""The part of Trainhop that runs on a borrowed machine: claims a lease, trains, saves, hands off."""
