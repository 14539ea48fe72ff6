"""`python -m worker.install [--wheels FOLDER] [--gpu]`: install what a worker trains with into this environment."""

from worker.shared.packages import main

if __name__ == "__main__":
    main()
