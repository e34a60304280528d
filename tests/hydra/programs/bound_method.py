import threading

import hydra
from told import tell


class App:
    lock = threading.Lock()

    def __init__(self, unit):
        self.unit = unit

    def run(self, config):
        with self.lock:
            tell((config.x, self.unit))


app = App("tokens")
main = hydra.main(version_base=None, config_path=None)(app.run)

if __name__ == "__main__":
    main()
