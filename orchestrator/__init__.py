"""The server of Trainhop. It schedules jobs and stores their results."""
