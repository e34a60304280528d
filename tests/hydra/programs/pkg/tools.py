import threading

LOCK = threading.Lock()


def square(number: int) -> int:
    with LOCK:
        return number**2
