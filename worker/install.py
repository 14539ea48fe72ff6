"""`python -m worker.install [--wheels FOLDER] [--gpu]`: install the training packages into this environment."""

from worker.shared.packages import main

if __name__ == "__main__":
    main()
