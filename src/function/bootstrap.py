"""Runs one instance of a python3 function: imports the handler, then answers frames until told to stop.

The channel to the broker is the socket that the instance finds as standard input. It is moved to a descriptor of its own
before any user code runs, so that neither print nor a child process can disturb it. A frame is
[length u32 le][kind u8][body]; the kinds are those of frame.rs.
"""
import json
import os
import sys
import time

LOAD, INVOKE, STOP = 1, 2, 3
LOADED, READY, BROKEN, RESULT, ERROR, STOPPED = 16, 17, 18, 19, 20, 21
READ_BYTES = 65536
MESSAGE_HEAD, MESSAGE_TAIL = 1000, 2900
OURS = globals()
CO_COROUTINE, CO_GENERATOR, CO_ASYNC_GENERATOR = 0x80, 0x20, 0x200


class Channel:
    """The framed socket, owned by the process that opened it: a forked child never writes to it."""

    def __init__(self):
        self.fd = os.dup(0)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        self.pid = os.getpid()
        self.buffer = b""
        close_inherited(self.fd)

    def read_exact(self, count):
        data = self.buffer
        if len(data) >= count:
            self.buffer = data[count:]
            return data[:count]
        parts, missing = [data], count - len(data)
        while missing > 0:
            part = os.read(self.fd, max(missing, READ_BYTES) if missing < READ_BYTES else min(missing, 1 << 20))
            if not part:
                os._exit(0)  # the broker is gone
            parts.append(part)
            missing -= len(part)
        data = b"".join(parts)
        self.buffer = data[count:]
        return data[:count] if self.buffer else data

    def receive(self):
        head = self.read_exact(5)
        return head[4], self.read_exact(int.from_bytes(head[:4], "little"))

    def send(self, kind, body):
        if os.getpid() != self.pid:
            os._exit(0)  # the handler forked and the child came back through it
        data = memoryview(len(body).to_bytes(4, "little") + bytes((kind,)) + body)
        while data:
            data = data[os.write(self.fd, data):]

    def send_json(self, kind, value):
        self.send(kind, json.dumps(value).encode())


class Broken(Exception):
    """The code cannot run, for a reason that needs no traceback."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code, self.message = code, message


class Fields:
    """A plain bag of attributes."""

    def __init__(self, **fields):
        self.__dict__.update(fields)

    def __repr__(self):
        return repr(self.__dict__)


class Context:
    """What the handler gets as `context`; the attribute names are Function Compute's where it has one."""

    def __init__(self, load):
        function = load["function"]
        self.function = Fields(
            name=function["name"], handler=function["handler"], memory=function["memory_mb"], timeout=function["timeout_s"],
            initializer=function["initializer"])
        self.service = Fields(name="", log_project="", log_store="", qualifier="", version_id=str(load["version"]))
        self.credentials = Fields(access_key_id="", access_key_secret="", security_token="")
        self.tracing = Fields(span_context="", jaeger_endpoint="", span_baggages={})
        self.region = self.account_id = ""
        self.instance_id = load["instance"]
        self.request_id = ""
        self.attempt = self.record_count = 0
        self.content_type = ""
        self.deadline = 0.0

    @property
    def logger(self):
        import logging
        return logging.getLogger()

    def get_remaining_time_in_millis(self):
        return max(0, int((self.deadline - time.monotonic()) * 1000))

    def begin(self, head):
        self.request_id = head["id"]
        self.attempt, self.record_count = head["attempt"], head["record_count"]
        self.content_type = head["content_type"]
        self.deadline = time.monotonic() + head["timeout_ms"] / 1000


class AfterImport:
    """Runs `action` right after the module `name` was first imported, so that nobody pays for an unused import."""

    def __init__(self, name, action):
        self.name, self.action = name, action

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                self.action(module)

            spec.loader.exec_module = exec_module
        return spec


class SiteOnDemand:
    """Last finder of all: processes `.pth` files and sitecustomize only when a module is not found without them.

    The search path is already the one that `site` would build; what remains is code in `.pth` files, such as the hooks of
    editable installs, which costs more than the whole start of the interpreter.
    """

    def find_spec(self, name, path=None, target=None):
        if path is not None:
            return None
        sys.meta_path.remove(self)
        import site
        site.main()
        return find_spec(name, path, target)


def find_spec(name, path, target):
    for finder in list(sys.meta_path):
        spec = finder.find_spec(name, path, target)
        if spec is not None:
            return spec
    return None


def set_up_logging(logging):
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("[%(levelname)s] %(message)s"))
    logging.root.addHandler(handler)
    logging.root.setLevel(logging.INFO)


def close_inherited(keep):
    try:
        open_now = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        open_now = range(3, 4096)
    for fd in open_now:
        if fd > 2 and fd != keep:
            try:
                os.close(fd)
            except OSError:
                pass


def set_up_interpreter(load):
    sys.path[:] = [load["code_dir"]] + load["path"]
    sys.prefix, sys.exec_prefix = load["prefix"], load["exec_prefix"]
    sys.argv = [load["function"]["handler"]]
    import site
    site.setquit()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
    sys.meta_path.insert(0, AfterImport("logging", set_up_logging))
    sys.meta_path.append(SiteOnDemand())


def flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass  # closed or replaced by the function: its own affair


def describe(error):
    """The traceback without our own frames, cut in the middle: the first call and the error itself matter most."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals is OURS:
        frames = frames.tb_next
    while frames is not None and "importlib" in frames.tb_frame.f_code.co_filename:
        frames = frames.tb_next
    try:
        import traceback
        text = "".join(traceback.format_exception(type(error), error, frames, limit=50))
    except BaseException:
        text = describe_plainly(error, frames)
    text = text.encode("utf-8", "backslashreplace").rstrip()
    if len(text) > MESSAGE_HEAD + MESSAGE_TAIL:
        text = text[:MESSAGE_HEAD] + b"\n  ...\n" + text[-MESSAGE_TAIL:]
    return text.decode("utf-8", "replace")


def describe_plainly(error, frames):
    """A traceback that needs no module and no file: a function may have used up its descriptors or its memory."""
    lines = ["Traceback (most recent call last):"]
    while frames is not None and len(lines) < 50:
        code = frames.tb_frame.f_code
        lines.append('  File "%s", line %d, in %s' % (code.co_filename, frames.tb_lineno, code.co_name))
        frames = frames.tb_next
    try:
        lines.append("%s: %s" % (name_of(error), error))
    except BaseException:
        lines.append(name_of(error))
    return "\n".join(lines)


def name_of(error):
    kind = type(error)
    return kind.__name__ if kind.__module__ in ("builtins", "__main__") else kind.__module__ + "." + kind.__name__


def describe_fault(error):
    """What the broker is told of an exception of the handler."""
    fault = {"code": name_of(error), "message": describe(error)}
    try:
        # Just that: what is not there or only looks like it, such as 0, says nothing.
        if error.retryable is False:
            fault["retryable"] = False
    except BaseException:
        pass  # it has none, or one that raises itself
    return fault


def shorten(names, most=20):
    names = list(names)
    text = ", ".join(names[:most]) + (", and %d more" % (len(names) - most) if len(names) > most else "")
    return text or "nothing"


def modules_below(folder):
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__")[:50]
        prefix = os.path.relpath(root, folder).replace(os.sep, ".")
        prefix = "" if prefix == "." else prefix + "."
        found += [prefix + name[:-3] for name in sorted(files) if name.endswith(".py")]
        if len(found) > 100:
            break
    return found


def find_function(reference, role, code_dir):
    import importlib
    module_name, name = reference["module"], reference["function"]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise
        raise Broken("module-not-found", "the %s is %s.%s, but there is no module %s in the code; it has: %s" % (
            role, module_name, name, module_name, shorten(modules_below(code_dir)))) from None
    function = getattr(module, name, None)
    if not callable(function):
        own = sorted(key for key, value in vars(module).items()
                     if callable(value) and not key.startswith("_") and getattr(value, "__module__", "") == module_name)
        what = "has no function %s" % name if function is None else "has %s, which is not a function" % name
        raise Broken("handler-not-found", "the %s is %s.%s, but module %s %s; it has: %s" % (
            role, module_name, name, module_name, what, shorten(own)))
    flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
    if flags & (CO_COROUTINE | CO_GENERATOR | CO_ASYNC_GENERATOR):
        kind = "a generator" if flags & CO_GENERATOR else "async"
        raise Broken("handler-not-plain", "the %s %s.%s is %s; only ordinary functions can be called" % (
            role, module_name, name, kind))
    return module, function


def encode(result):
    """Bytes stay as they are; everything else becomes JSON."""
    if isinstance(result, (bytes, bytearray, memoryview)):
        return bytes(result)
    return json.dumps(result, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def send_result(channel, result, output_max):
    try:
        body = encode(result)
    except Exception as error:
        channel.send_json(ERROR, {"code": "result-not-json", "message":
                                  "the handler returned a %s that is not JSON: %s" % (type(result).__name__, error)})
        return
    if len(body) > output_max:
        channel.send_json(ERROR, {"code": "output-too-large", "message":
                                  "the handler returned %d bytes, the limit is %d" % (len(body), output_max)})
        return
    channel.send(RESULT, body)


def leave(error):
    """Ends the process with the status that `sys.exit` asked for, not waiting for threads of the function."""
    code = error.code
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    flush()
    os._exit((code or 0) & 0xFF)


def invoke(channel, handler, context, body, output_max):
    head_end = 4 + int.from_bytes(body[:4], "little")
    context.begin(json.loads(body[4:head_end]))
    try:
        result = handler(body[head_end:], context)
    except SystemExit as error:
        leave(error)
    except BaseException as error:
        flush()
        channel.send_json(ERROR, describe_fault(error))
        return
    flush()
    send_result(channel, result, output_max)


def pre_stop(channel, hook, context):
    if callable(hook):
        try:
            hook(context)
        except SystemExit:
            pass
        except BaseException as error:
            print("pre_stop: " + describe(error), file=sys.stderr)
    flush()
    channel.send(STOPPED, b"")


def load_code(channel, load, context):
    started = time.monotonic()
    module, handler = find_function(load["handler"], "handler", load["code_dir"])
    initializer = None
    if load["initializer"]:
        _, initializer = find_function(load["initializer"], "initializer", load["code_dir"])
    channel.send(LOADED, b"")
    loaded = time.monotonic()
    if initializer is not None:
        initializer(context)
    flush()
    channel.send_json(READY, {"load_us": int((loaded - started) * 1e6),
                              "initialize_us": int((time.monotonic() - loaded) * 1e6)})
    return handler, getattr(module, "pre_stop", None)


def main():
    channel = Channel()
    kind, body = channel.receive()
    load = json.loads(body)
    set_up_interpreter(load)
    context = Context(load)
    try:
        handler, hook = load_code(channel, load, context)
    except BaseException as error:
        flush()
        known = isinstance(error, Broken)
        channel.send_json(BROKEN, {"code": error.code if known else name_of(error),
                                   "message": error.message if known else describe(error)})
        os._exit(1)
    while True:
        kind, body = channel.receive()
        if kind == STOP:
            pre_stop(channel, hook, context)
            os._exit(0)
        invoke(channel, handler, context, body, load["output_max"])


main()
