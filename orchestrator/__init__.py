"""The server of Trainhop: decides what runs where, keeps what was learnt."""
