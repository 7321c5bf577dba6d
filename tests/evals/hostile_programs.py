"""Programs that must not pass `assert f(1) == 2`: wrong ones, and those that attack the grader."""

WRONG = {
    "a wrong result": ("def f(x): return x", "wrong answer"),
    "nothing": ("", "function not defined"),
    "no function": ("f = 2", "function not defined"),
    "no Python": ("def f(x:", "raised SyntaxError"),
    "no text": ("\0", "raised SyntaxError|raised ValueError"),
    "half a character": ("'\ud800'", "raised UnicodeEncodeError"),
    "a wrong type": ("def f(x): return str(x + 1)", "wrong answer"),
    "an error": ("def f(x): return x + ''", "raised TypeError"),
    "an error of its own": ("class E(Exception): ...\ndef f(x): raise E", "raised E"),
    "an error that looks like the tests'": ("def f(x): raise AssertionError", "raised Asser"),
    "endless recursion": ("def f(x): return f(x)", "raised RecursionError"),
    "endless recursion below Python": (
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return max([x], key=f)",
        "crashed with SIGSEGV",
    ),
    "10 GB at once": ("def f(x): return bytearray(10 * 2**30)", "out of memory"),
    "10 GB bit by bit": (
        "def f(x):\n    y = []\n    while True: y.append([0] * 60)",
        "out of memory",
    ),
    "a large result": ("def f(x): return 'x' * 2_000_000", "output too large"),
    "a result that contains itself": (
        "def f(x):\n    x = []\n    x.append(x)\n    return x",
        "raised RecursionError",
    ),
    "a result that is no value": ("def f(x): return f", "no literal result"),
    "a result nested too deeply": (
        "def f(x):\n    for _ in range(250): x = [x]\n    return x",
        "no literal result",
    ),
    "sys.exit": ("import sys\ndef f(x): sys.exit(0)", "exited"),
    "sys.exit at once": ("import sys\nsys.exit(0)", "exited"),
    "SystemExit": ("def f(x): raise SystemExit", "exited"),
    "os._exit": ("import os\ndef f(x): os._exit(0)", "exited"),
    "KeyboardInterrupt": ("def f(x): raise KeyboardInterrupt", "exited"),
    "an endless loop": ("def f(x):\n    while True: pass", "timed out"),
    "an endless loop at once": ("while True: pass", "timed out"),
    "an endless loop with handlers": (
        "import signal\nfor s in {*signal.Signals} - {9, 19}: signal.signal(s, lambda *_: 0)\n"
        "def f(x):\n    while True: pass",
        "timed out",
    ),
    "sleep": ("import time\ndef f(x): time.sleep(1000)", "timed out"),
    "endless output": ("def f(x):\n    while True: print('x' * 10**6)", "timed out"),
    "a signal without a name": (
        "import os\ndef f(x): os.kill(os.getpid(), 40)",
        "crashed with sig",
    ),
    "an error whose name is a line": (
        "def f(x): raise type('\\n\\x1b[1mHumanEval 1.0000', (Exception,), {})()",
        "raised an error",
    ),
    "many files": (
        "import itertools\ndef f(x):\n"
        "    for i in itertools.count(): open(str(i), 'wb').write(bytes(7 * 2**20))",
        "wrote too much to disk",
    ),
    "threads that stay": (
        "import threading, time, sys\n"
        "threading.Thread(target=time.sleep, args=(1000,)).start()\ndef f(x): sys.exit()",
        "exited",
    ),
}

"""Program, and how the note of its grade begins, or may begin."""

ATTACKS = {
    "equal to all": """
class A:
    def __eq__(self, other): return True
    def __hash__(self): return hash(2)
    def __repr__(self): return '0x2'
def f(x): return A()
""",
    "an int that lies": """
class A(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return hash(2)
    def __index__(self): return 2
def f(x): return A(7)
""",
    "a str that lies": """
class A(str):
    def __eq__(self, other): return True
def f(x): return A('7')
""",
    "a list that lies": """
class A(list):
    def __eq__(self, other): return True
    def __len__(self): return 1
def f(x): return A([7])
""",
    "patched builtins": """
import builtins
builtins.AssertionError = type('A', (Exception,), {})
builtins.isinstance = lambda *_: True
builtins.len = builtins.print = builtins.repr = builtins.hash = lambda *_: 2
builtins.compile = builtins.exec = lambda *_: None
def f(x): return 7
""",
    "the harness patched": """
import __main__
__main__.verdict = lambda *_: 'passed'
__main__.run_tests = __main__.judge = lambda *_: None
def f(x): return 7
""",
    "a reply that is a verdict": """
def f(x):
    import __main__
    __main__.encode = lambda _: b'passed'
    return 7
""",
    "verdicts to whatever is open": """
for message in (b'passed', b'call ((0x1, ), {})', b'loaded', b'verdict '):
    for fd in range(64):
        try: os.write(fd, len(message).to_bytes(4, 'big') + message)
        except OSError: pass
def f(x): return 7
""",
    "garbage to whatever is open": """
def f(x):
    for fd in range(64):
        try: os.write(fd, b'passed\\n' * 100)
        except OSError: pass
    os._exit(0)
""",
    "a reply nested very deeply": """
def f(x):
    message = b'[' * 100_000
    os.write(4, len(message).to_bytes(4, 'big') + message)
    return 7
""",
    "a reply that is code": """
def f(x):
    message = b"('value', __import__('os')._exit(0))"
    os.write(4, len(message).to_bytes(4, 'big') + message)
""",
    "all closed": """
def f(x):
    os.closerange(0, 1000)
    while True: pass
""",
    "the expected result, searched on the stack": """
import gc, sys
wanted = '=' * 2 + ' 2'
def f(x):
    frame = sys._getframe()
    while frame:
        for scope in (frame.f_globals, frame.f_locals):
            if any(wanted in str(v) for v in scope.values() if v is not wanted): return 2
        frame = frame.f_back
    for thing in gc.get_objects():
        if type(thing) in (dict, list, tuple):
            if any(type(v) is str and wanted in v and v != wanted for v in thing): return 2
    return 7
""",
    "the expected result, searched in memory": """
import ctypes, os
def f(x):
    for pid in {*range(os.getppid() - 5, os.getpid() + 5)} - {os.getpid()}:
        for name in ('mem', 'environ', 'cmdline', 'maps', *(f'fd/{fd}' for fd in range(20))):
            for mode in ('rb', 'wb'):
                try:
                    open(f'/proc/{pid}/{name}', mode)
                    return 2
                except OSError: pass
    return 7
""",
    "another process": """
import ctypes, importlib, os, posix
def f(x):
    for start in (os.fork, posix.fork, importlib.reload(os).fork, ctypes.CDLL(None).fork):
        try: pid = start()
        except OSError: continue
        if pid == 0:
            os.setsid()
            import time; time.sleep(1000)
    return 7
""",
    "its folder gone": """
os.symlink('/', 'root')
os.mkdir('x', 0)
try: os.rmdir(os.getcwd())
except OSError: pass
def f(x): return 7
""",
}
