"""The ClientApp: Flower messages in, `fl_app.local_round` and `fl_app.enrolment` at work, messages out."""

from collections.abc import Callable
from functools import partial
from logging import ERROR

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.logger import log
from threadpoolctl import threadpool_limits

from fl_app import enrolment, local_round
from fl_app.site import Common, Site
from fl_app.variants import variant_config, variant_of
from strategies import wire

app = ClientApp()


@app.query("enrol")
def enrol(message: Message, context: Context) -> Message:
    """Say which clients this node hosts."""

    def content() -> RecordDict:
        config = variant_config(context.run_config, variant_of(wire.read_config(message.content)))
        return enrolment.answer(config, context.node_config, message.content)

    return _reply(message, content)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the clients that the message names."""

    def content() -> RecordDict:
        beside = wire.read_beside(message.content)
        return _work(partial(local_round.train, beside=beside), message, context)

    return _reply(message, content)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure the model on the test rows of the clients that the message names."""
    return _reply(message, lambda: _work(local_round.evaluate, message, context))


@app.query("survey")
def survey(message: Message, context: Context) -> Message:
    """Measure the final model and what is made of it here, and where asked its curvature."""

    def content() -> RecordDict:
        asked = wire.read_config(message.content)
        work = partial(local_round.survey, curvature=bool(asked["curvature"]), kinds=tuple(asked["kinds"]))
        return _work(work, message, context)

    return _reply(message, content)


def _work(work: local_round.Work, message: Message, context: Context) -> RecordDict:
    site = Site.of(context, Common.of(wire.read_config(message.content)))
    with threadpool_limits(site.config.threads):
        answer = work(site, wire.read_order(message.content), wire.read_params(message.content))
    return wire.answer_content(answer)


def _reply(message: Message, content: Callable[[], RecordDict]) -> Message:
    """The reply, or an error that says no more than that there was one: Flower would send the exception's text, which
    may quote data."""
    try:
        return Message(content(), reply_to=message)
    except Exception as error:
        log(ERROR, "the node could not answer", exc_info=error)
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "see the log of the node"), reply_to=message)
