"""Work over many cases on a Dask cluster, behind the same interface as local processes."""

import logging
import os
import pickle
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import SimpleITK

import biasreg
from biasreg.core.errors import BiasregError, InputError

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

_GO_ON = "run the same command again: it goes on where it was"


@contextmanager
def open_cluster(address: str, folders: Sequence[Path] = ()) -> Iterator[Executor]:
    """Connect to a Dask cluster; the connection ends with the block, the cluster stays.

    Args:
        address: Of the scheduler, as `tcp://host:8786`, or its scheduler file.
        folders: Absolute paths of folders that the workers must see too; of one that is still to be made, the nearest
            above counts.

    Yields:
        Where cases can be worked on. Each is a task of one core; nothing is kept on the cluster.

    Raises:
        InputError: Dask's package is not installed, no scheduler answers, or a worker that is there has another version
            of biasreg or does not see a folder.
    """
    try:
        from distributed import Client  # noqa: PLC0415  an optional dependency
    except ImportError as error:
        raise InputError(f"--dask needs the package distributed ({error}) · pip install 'biasreg[cluster]'") from error
    where = {"scheduler_file": address} if Path(address).is_file() else {"address": address}
    try:
        client = Client(**where, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers at '{address}': {error} · give another address") from error
    with client:
        _check_workers(client, address, folders)
        yield ClusterExecutor(client)


class ClusterExecutor(Executor):
    """Hands calls to the workers of a Dask cluster, and says in the user's words what goes wrong there.

    Unlike the executor that a client of Dask gives, it makes each call, also one that was made before: files may have
    changed in between.
    """

    def __init__(self, client: "Client") -> None:
        self._client = client

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Call a function on a worker.

        Args:
            function: What is called; the workers import it.
            args: Its arguments.
            kwargs: Its named arguments.

        Returns:
            Its future result. An error of the cluster, not of the function, is a `BiasregError`.
        """
        result: Future[Any] = Future()
        key = (
            f"{getattr(function, '__name__', 'call')}-{uuid.uuid4().hex}"  # its own, so that no call stands for another
        )
        remote = self._client.submit(pickle.loads, pickle.dumps(_Call(function, args, kwargs)), key=key)
        result.add_done_callback(partial(_cancel, remote))
        remote.add_done_callback(partial(_pass_on, result))
        return result


class _Call:
    """A call that is made where it is unpickled.

    Dask would unpickle a function of ours when it receives it, on the scheduler and on the worker: where biasreg cannot
    be imported, its worker then ends without a word and the work waits for ever. Made by `pickle.loads`, it is an error
    like any other.
    """

    def __init__(self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self._parts = function, args, kwargs

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _on_one_core, self._parts


def _on_one_core(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Keep ITK to one thread: a worker has a core for each task, and sums must not depend on threads."""
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    return function(*args, **kwargs)


def _cancel(remote: Any, result: "Future[Any]") -> None:
    if result.cancelled():
        with suppress(Exception):  # of a connection that broke; there is nothing to cancel then
            remote.cancel()


def _pass_on(result: "Future[Any]", remote: Any) -> None:
    """Hand the outcome of a task on; Dask calls this in a thread of its own."""
    if not result.set_running_or_notify_cancel():
        return
    try:
        if remote.status == "error":
            result.set_exception(_explained(remote.exception()))
        elif remote.status == "finished":
            result.set_result(remote.result())
        else:
            result.set_exception(_lost(remote.status))
    except Exception as error:  # whatever stops here would leave the caller waiting for ever
        result.set_exception(_lost(error))


def _lost(reason: object) -> BiasregError:
    return BiasregError(
        f"the Dask cluster gave the work up ({reason}): its scheduler ended or the connection to it broke · {_GO_ON}"
    )


def _explained(error: BaseException) -> BaseException:
    """Put what only a cluster can do to a task in the user's words; what the function raised stays as it is."""
    if type(error).__name__ == "KilledWorker":
        return BiasregError(
            "the Dask workers that worked on it died, one after the other, most likely because memory ran out · "
            f"start workers with more memory or fewer threads; {_GO_ON}"
        )
    if isinstance(error, MemoryError):
        return BiasregError(f"out of memory · start Dask workers with more memory or fewer threads; {_GO_ON}")
    if isinstance(error, ImportError):
        return BiasregError(
            f"a Dask worker cannot import what it needs ({error}) · install biasreg {biasreg.__version__} in the "
            "environment of the workers"
        )
    return error


def _check_workers(client: "Client", address: str, folders: Sequence[Path]) -> None:
    """Look at the workers that are there; others may join later, so none is no fault."""
    try:
        call = _Call(_describe_worker, ([str(_nearest(folder)) for folder in folders],), {})
        answers = client.run(pickle.loads, pickle.dumps(call))
    except ImportError as error:
        raise InputError(
            f"the Dask workers of '{address}' cannot import biasreg ({error}) · install biasreg {biasreg.__version__} "
            "in their environment"
        ) from error
    if not answers:
        logger.warning("no worker has joined the Dask scheduler at '%s' yet; the work begins when one does", address)
    for worker, (version, missing) in answers.items():
        if version != biasreg.__version__:
            raise InputError(
                f"the Dask worker {worker} has biasreg {version}, this is {biasreg.__version__} · install the same "
                "version in both environments"
            )
        if missing:
            raise InputError(
                f"the Dask worker {worker} does not see {', '.join(missing)} · work in folders that all machines share"
            )
    logger.info("working on %d Dask worker(s) of '%s'", len(answers), address)


def _nearest(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _describe_worker(folders: Sequence[str]) -> tuple[str, list[str]]:
    """Tell the version of biasreg, and the folders that are not there, on the worker that this runs on."""
    return biasreg.__version__, [folder for folder in folders if not os.path.isdir(folder)]
