"""The ClientApp: Flower messages in, `fl_app.local_round` and `fl_app.enrolment` at work, messages out."""

from collections.abc import Callable
from functools import partial
from logging import ERROR, WARNING

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.logger import log
from threadpoolctl import threadpool_limits

from fl_app import enrolment, local_round
from fl_app.policy import Ask, Declined
from fl_app.receipts import NodeLog
from fl_app.site import Common, Site
from fl_app.variants import variant_config, variant_of
from strategies import wire
from strategies.history import Dropped
from strategies.update import InvalidUpdate

app = ClientApp()


@app.query("enrol")
def enrol(message: Message, context: Context) -> Message:
    """Say which clients this node hosts."""

    def content() -> RecordDict:
        config = variant_config(context.run_config, variant_of(wire.read_config(message.content)))
        return enrolment.answer(config, context.node_config, message.content, context.node_id)

    return _reply(message, context, content)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the clients that the message names."""

    def content() -> RecordDict:
        beside = wire.read_beside(message.content)
        return _work(partial(local_round.train, beside=beside), "train", message, context)

    return _reply(message, context, content)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure the model on the test rows of the clients that the message names."""
    return _reply(message, context, lambda: _work(local_round.evaluate, "evaluate", message, context))


@app.query("survey")
def survey(message: Message, context: Context) -> Message:
    """Measure the final model, and models made from it here; where asked, send the curvature of the loss as well."""

    def content() -> RecordDict:
        asked = wire.read_config(message.content)
        work = partial(local_round.survey, curvature=bool(asked["curvature"]), kinds=tuple(asked["kinds"]))
        return _work(work, "survey", message, context)

    return _reply(message, context, content)


@app.query("means")
def means(message: Message, context: Context) -> Message:
    """The means of the clients' features, with noise."""
    return _reply(message, context, lambda: _work(local_round.means, "means", message, context))


def _work(work: local_round.Work, ask: Ask, message: Message, context: Context) -> RecordDict:
    """Do what a train, evaluate, survey or means message asks, by the function for it. Raises Declined."""
    site = Site.of(context, Common.of(wire.read_config(message.content)), ask)
    order = wire.read_order(message.content)
    site.check_clients(order)
    try:
        params = site.held_model.receive(message.content, site.strategy.downlink)
    except InvalidUpdate as error:  # the server will send the model as a whole
        log(WARNING, "the node cannot follow the model: %s", error)
        return wire.answer_content(wire.Answer((), tuple(Dropped(client, error.reason) for client in order.clients)))
    with threadpool_limits(site.config.threads):
        answer = work(site, order, params)
    return wire.answer_content(answer)


def _reply(message: Message, context: Context, content: Callable[[], RecordDict]) -> Message:
    """The reply to a message, with its entries in the site's audit log, where the site keeps one.

    An exception becomes an error reply that says no more than that there was one: Flower would send the exception's
    text, which may quote data. Where the message cannot be entered into the audit log, nothing that it asks is done.
    """
    try:
        node_log = NodeLog.of(message, context)
        if node_log is None:
            return _answered(message, content)[0]
        node_log.asked()
        try:
            reply, declined = _answered(message, content)
        except Exception as error:
            node_log.failed(error)
            raise
        node_log.answered(reply, declined)
        return reply
    except Exception as error:
        log(ERROR, "the node could not answer", exc_info=error)
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "see the log of the node"), reply_to=message)


def _answered(message: Message, content: Callable[[], RecordDict]) -> tuple[Message, Declined | None]:
    """The reply, and the reason where the site declines. The reason is logged here and does not travel."""
    try:
        return Message(content(), reply_to=message), None
    except Declined as declined:
        log(WARNING, "declined by this site: %s", declined)
        if "order" not in message.content:
            return Message(enrolment.declined(), reply_to=message), declined
        clients = wire.read_order(message.content).clients
        answer = wire.Answer((), tuple(Dropped(client, "declined") for client in clients))
        return Message(wire.answer_content(answer), reply_to=message), declined
