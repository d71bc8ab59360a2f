"""
The process that a completion is confined to, and the form in which values go into it and come out.

lib/judge.py imports this file, and nothing else of the project: both run inside the sandbox, on the
standard library alone.
"""
import collections.abc
import contextlib
import ctypes
import decimal
import fractions
import json
import numbers
import os
import resource
import shutil
import signal
import socket
import struct
import sys
import tempfile

# -----------------------------------------------------------------------------
# the idea
#
# A pass must not be something that a completion can fake, so the function under test never meets
# its tests. A judge, an interpreter of its own, holds the tests and the expected outputs. For each
# completion it has a process made that knows only the completion's text, is sent arguments, and
# sends back return values, both as plain data. All that the judge believes is data: whoever sends
# the right values for all arguments has solved the problem.
#
#     lib/scoring.py --problem, completions--> lib/judge.py --code, arguments--> serve(), a process
#                    <-------verdicts---------              <--return values---- for each completion
#
# On Linux both live without network, in a file system that holds Python, read-only, and an empty
# /scratch. A completion has process ids and a /scratch to itself, and what it has started is killed
# together with it. These are three processes:
#
#     the judge ---+
#                  +--- confine(), number 1 among its process ids
#                            +--- serve(), one completion after another

# -----------------------------------------------------------------------------
# values as plain data

PLAIN = {type(None), bool, str, float}  # JSON carries the values of these types as they are
BIG_INT = 2 ** 63                       # integers from here on are sent in hexadecimal


def is_plain_list(x):
    """Whether JSON carries the list x as it is: a quick look, for long lists."""
    kinds = set(map(type, x))
    if kinds <= PLAIN:
        return True
    return kinds <= {int, float} and -BIG_INT < min(x) and max(x) < BIG_INT


def pack(x):
    """A value as JSON can carry it, with its type; `unpack` is the inverse.

    What is not plain is an object with one key: (1, 2) becomes {"tuple": [1, 2]}.
    """
    kind = type(x)
    if kind in PLAIN:
        return x
    if kind is int:
        return x if abs(x) < BIG_INT else {"int": hex(x)}
    if kind is list:
        return x if is_plain_list(x) else [pack(y) for y in x]
    if kind in (tuple, set, frozenset):
        return {kind.__name__: [pack(y) for y in x]}
    if kind is dict:
        return {"dict": [[pack(key), pack(value)] for key, value in x.items()]}
    if kind is complex:
        return {"complex": [x.real, x.imag]}
    if kind in (bytes, bytearray):
        return {kind.__name__: x.decode("latin-1")}
    return pack_like_plain(x)


def pack_like_plain(x):
    """Pack a value of any other type as the plain value that it would compare as.

    A subclass of a built-in type comes back as an unnamed subclass with the base's value and
    behaviour, so that an `__eq__` of the completion's own does not travel.
    """
    if isinstance(x, collections.abc.Iterator):
        return {"iterator": [pack(y) for y in x]}
    for base in (int, float, complex, str, bytes, list, tuple, dict, set, frozenset):
        if isinstance(x, base):
            return {"subclass": pack(base(x))}
    if isinstance(x, numbers.Integral):  # numpy's
        return {"subclass": pack(int(x))}
    if isinstance(x, collections.abc.Set):  # a dict's keys
        return {"subclass": pack(set(x))}
    if isinstance(x, (numbers.Rational, decimal.Decimal)):
        return {"Fraction": [hex(n) for n in x.as_integer_ratio()]}
    if isinstance(x, numbers.Real):  # numpy's
        return {"subclass": pack(float(x))}
    module = getattr(type(x), "__module__", None)
    if module == "numpy" and type(x).__name__ in ("bool", "bool_"):
        return bool(x)
    if module == "numpy" and getattr(x, "shape", None) == ():  # an array without dimensions
        return pack(x.item())
    if isinstance(x, collections.abc.Iterable):  # an array, a dict's values, a range
        return {"iterable": [pack(y) for y in x]}
    return {"object": None}  # equal to nothing


def int_of(text):
    return int(text, 16)


def complex_of(parts):
    return complex(*parts)


def bytes_of(text):
    return text.encode("latin-1")


def bytearray_of(text):
    return bytearray(text, "latin-1")


def fraction_of(parts):
    return fractions.Fraction(*map(int_of, parts))


def object_of(_):
    return object()


class Iterable:
    """What was an array, a range or a dict's values: it has items, and equals nothing, as a range
    equals no list."""

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def subclass_of(value):
    return type("subclass", (type(value),), {})(value)


MAKERS = {  # by the one key of a packed value: what makes the value again
    "int": int_of,
    "complex": complex_of,
    "bytes": bytes_of,
    "bytearray": bytearray_of,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "dict": dict,
    "iterator": iter,
    "iterable": Iterable,
    "Fraction": fraction_of,
    "object": object_of,
    "subclass": subclass_of,
}


def unpack(x):
    """The value that `pack` has made x of. Raises various errors if x comes from elsewhere."""
    if isinstance(x, list):
        has_packed = not {list, dict}.isdisjoint(map(type, x))
        return [unpack(y) for y in x] if has_packed else x
    if not isinstance(x, dict):
        return x
    ((kind, content),) = x.items()
    return MAKERS[kind](unpack(content))


# -----------------------------------------------------------------------------
# the C library: what Linux offers and Python does not
#
# The names are those of the Linux headers, where `man 2 mount` and the like explain them.

LIBC = ctypes.CDLL(None, use_errno=True)

# unshare(2)
CLONE_NEWNS = 0x00020000  # mounts
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# mount(2), umount2(2)
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2

# mount_setattr(2), which the C library may be too old to know by name
SYS_MOUNT_SETATTR = 442
AT_FDCWD = -100
AT_RECURSIVE = 0x8000
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2

# prctl(2), capset(2)
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
LINUX_CAPABILITY_VERSION_3 = 0x20080522


def libc(name, *arguments):
    """Call a function of the C library. Raises OSError, AttributeError where it has none such."""
    if getattr(LIBC, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def where_possible():
    """A `with` block that is left quietly where the system does not allow or know something."""
    return contextlib.suppress(OSError, AttributeError)


def set_process(option, value):
    """Set an option of this process with prctl(2), where there is one."""
    with where_possible():
        libc("prctl", option, value, 0, 0, 0)


# -----------------------------------------------------------------------------
# isolation of the judge, and so of all that it starts

NEW_ROOT = "/sys"  # only lends its place: the new root is put together there
SCRATCH = "/scratch"
SCRATCH_OPTIONS = b"size=64m,mode=1777"  # as /tmp: anyone may write
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/nix", "/dev/null", "/dev/zero", "/dev/urandom")


def isolate():
    """Take this process and its children off the network, and off all files but Python's own.

    Root may do so; other users get a user namespace first, in which they may. Children get process
    ids of their own. Returns what could not be had, a list of words.
    """
    # in this order: a mount needs the namespaces, and a process number 1 the new root
    steps = {"network": own_namespaces, "file system": own_root, "processes": own_process_ids}
    missing = list(steps)
    for name, step in steps.items():
        try:
            step()
        except (OSError, AttributeError):  # not allowed here, or not Linux
            break  # each step needs those before it
        missing.remove(name)
    return missing


def own_namespaces():
    """Give this process a network, shared memory and mounts of its own; the network is empty."""
    wanted = CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWNS
    try:
        libc("unshare", wanted)
    except OSError:  # not root
        own_user_namespace(wanted)


def own_user_namespace(wanted):
    """Get the namespaces `wanted` as a user who is not root, inside a user namespace."""
    uid, gid = os.getuid(), os.getgid()  # asked inside, both would be unknown
    libc("unshare", CLONE_NEWUSER | wanted)
    # The user keeps their number. Linux wants `setgroups` denied before it takes a map of groups.
    maps = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
    for name, text in maps.items():
        with open(f"/proc/self/{name}", "w") as f:
            f.write(text)


def own_root():
    """Change the root to one with Python's files, read-only, and an empty SCRATCH."""
    libc("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)  # nothing of this shows outside
    libc("mount", b"tmpfs", NEW_ROOT.encode(), b"tmpfs", 0, b"mode=755")
    for path in (*SYSTEM, os.path.realpath(sys.base_prefix), os.path.realpath(sys.prefix)):
        bring(path)
    os.mkdir(NEW_ROOT + SCRATCH)
    if not os.path.lexists(f"{NEW_ROOT}/tmp"):  # it is there if Python's own files lie under it
        os.symlink(SCRATCH, f"{NEW_ROOT}/tmp")

    # pivot_root(2) with "." twice lays the old root over the new one, from where it is detached.
    os.chdir(NEW_ROOT)
    libc("pivot_root", b".", b".")
    libc("umount2", b".", MNT_DETACH)
    os.chdir("/")
    mount_scratch()
    make_read_only("/", flags=0)


def bring(path):
    """Show the folder, file or link `path` in the new root too, where it exists."""
    inside = NEW_ROOT + path
    if os.path.lexists(inside) or not os.path.exists(path):
        return
    os.makedirs(os.path.dirname(inside), exist_ok=True)
    if os.path.islink(path):  # such as /bin, to usr/bin
        os.symlink(os.readlink(path), inside)
        return

    # a mount needs something of the same sort to lie over
    is_folder = os.path.isdir(path)
    if is_folder:
        os.mkdir(inside)
    else:
        open(inside, "w").close()
    libc("mount", path.encode(), inside.encode(), None, MS_BIND | MS_REC, None)
    if is_folder:  # the others are devices, /dev/null among them
        make_read_only(inside, AT_RECURSIVE)


def make_read_only(path, flags):
    """Make the mount at `path` read-only; with AT_RECURSIVE in `flags` also those below it."""
    to_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID
    attributes = struct.pack("QQQQ", to_set, 0, 0, 0)  # to set, to clear, propagation, namespace
    libc("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, attributes, len(attributes))


def mount_scratch():
    """Mount an empty folder in memory, the only place where a completion may write."""
    libc("mount", b"tmpfs", SCRATCH.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, SCRATCH_OPTIONS)


def own_process_ids():
    """Give the children of this process ids of their own. The first child is number 1."""
    libc("unshare", CLONE_NEWPID)


def drop_privileges(uid):
    """Become user `uid` if this is root; give up what a user namespace allowed."""
    with contextlib.suppress(OSError):  # not root
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    # No program that is started from here gets rights that this process has not, not even `su`.
    with where_possible():
        libc("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc("capset", struct.pack("Ii", LINUX_CAPABILITY_VERSION_3, 0), bytes(24))


# -----------------------------------------------------------------------------
# the process of one completion

CHANNEL = 3                 # its descriptor of the socket to the judge
MOST_DESCRIPTORS = 1024
MOST_FILE_BYTES = 1 << 24
MOST_PROCESSES = 32         # user ids are the completion's own then
MOST_PROCESSES_OF_USER = 1024  # where they are not isolated, the user's other processes count too


def serve(channel, memory, seconds, uid, isolated):
    """Be the process that a completion is confined to, until the judge closes the socket.

    channel: descriptor of a socket to the judge; memory: bytes; seconds: of computing.
    """
    os.setsid()  # a group of its own, which can be killed as one
    keep_only(channel)
    limit_resources(memory, seconds, isolated)
    with where_possible():
        libc("unshare", CLONE_NEWIPC)  # shared memory ends with the process
    drop_privileges(uid)
    os.write(CHANNEL, b".")  # by which the judge learns the process id
    answer_requests()


def keep_only(channel):
    """Close all descriptors but `channel`, which becomes CHANNEL."""
    # what the completion reads from standard input is empty, what it prints is lost
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.dup2(channel, CHANNEL)
    os.closerange(CHANNEL + 1, MOST_DESCRIPTORS)


def limit_resources(memory, seconds, isolated):
    """Bound what this process may use; its children inherit the bounds."""
    bounds = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: MOST_FILE_BYTES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: MOST_PROCESSES if isolated else MOST_PROCESSES_OF_USER,
    }
    for what, bound in bounds.items():
        # macOS has no limit on the address space; and a huge number is none
        with contextlib.suppress(ValueError, OSError, OverflowError):
            resource.setrlimit(what, (bound, bound))


def answer_requests():
    """Define the completion's function, then call it on what the judge sends.

    In:  {"code": ..., "entry_point": ...}, then lists of packed lists of arguments, each a line.
    Out: a line for the definition and one for each call, see `outcome`.
    """
    requests = open(CHANNEL, "rb", closefd=False)
    replies = open(CHANNEL, "wb", closefd=False)
    job = json.loads(requests.readline())
    scope = {}

    def define():
        exec(compile(job["code"], "completion", "exec"), scope)
        scope[job["entry_point"]]  # a KeyError here is the verdict

    def call(arguments):
        return pack(scope[job["entry_point"]](*unpack(arguments)))

    def reply(line):
        replies.write(line)
        replies.flush()

    reply(outcome(define))
    for line in requests:
        for arguments in json.loads(line):
            reply(outcome(call, arguments))


def outcome(function, *arguments):
    """What a call gave, as a line for the judge: "returned [1, 2]" or "raised ValueError"."""
    try:
        line = "returned " + json.dumps(function(*arguments))
    except BaseException as error:
        line = f"raised {type(error).__name__}"
    return line.encode("ascii", "replace") + b"\n"


# -----------------------------------------------------------------------------
# its parent


def confine(orders, isolated):
    """Be the parent of the processes that completions run in, one after another; never return.

    orders: a socket to the judge. For each completion it sends [memory, seconds, uid] together with
    the socket that `serve` gets, and a byte when it is done. Then the process is killed, and all
    that it has started. Where process ids are isolated, this process is number 1, whom completions
    can't kill.
    """
    while True:
        settings, descriptors, _, _ = socket.recv_fds(orders, 1024, 1)
        if not settings:  # the judge is gone
            os._exit(0)
        channel = descriptors[0]
        scratch = enter_scratch(isolated)

        child = os.fork()
        if child == 0:
            serve(channel, *json.loads(settings), isolated)
            os._exit(0)
        os.close(channel)  # the child's alone: when it ends, the judge sees the socket closed
        judge_lives = orders.recv(1)  # empty if the judge is gone

        kill_all(child, isolated)
        clear_scratch(scratch, isolated)
        if not judge_lives:
            os._exit(0)


def enter_scratch(isolated):
    """Change to an empty folder in which anyone may write; returns its path."""
    scratch = SCRATCH
    if not isolated:
        judge = os.getppid()  # in the name, so that it can be told whose folder is left over
        scratch = tempfile.mkdtemp(prefix=f"nanoproxy-judge-{judge}-")
        os.chmod(scratch, 0o777)
    os.chdir(scratch)
    return scratch


def clear_scratch(scratch, isolated):
    """Remove what a completion has left in its folder."""
    os.chdir("/")
    if not isolated:
        shutil.rmtree(scratch, ignore_errors=True)
    elif os.listdir(SCRATCH):  # a new file system takes no time, however deep the folders
        libc("umount2", SCRATCH.encode(), MNT_DETACH)
        mount_scratch()


def kill_all(child, isolated):
    """Kill a completion's process with all that it has started, and wait until they are gone."""
    everything = -1 if isolated else -child  # all processes but this one, or the child's group
    with contextlib.suppress(OSError):  # there may be none left
        os.kill(child, signal.SIGKILL)
        os.kill(everything, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):  # all are gone
        while True:
            if not isolated:
                kill_orphans()
            os.waitpid(-1, 0)


def kill_orphans():
    """Kill those that have left the child's group: their parent died, so they are children here."""
    with contextlib.suppress(OSError):
        with open(f"/proc/self/task/{os.getpid()}/children") as f:
            orphans = f.read().split()
        for orphan in orphans:
            os.kill(int(orphan), signal.SIGKILL)
