"""The ways in which a store answers a ranged read wrongly."""

from __future__ import annotations

from fault.store import Answer, Fault, Handler, Question, error

PAGE = b"<!DOCTYPE html><html><body>Please log in to the hotel's network.</body></html>"


def always(answer: Answer) -> Fault:
    """The same answer, whatever was asked."""
    return lambda handler, _, __: handler.send(answer)


def silent(handler: Handler, question: Question, right: Answer) -> None:
    """Nothing at all, until somebody hangs up."""
    handler.server.store.closing.wait(120)
    handler.close_connection = True


def silent_after_half(handler: Handler, question: Question, right: Answer) -> None:
    handler.send(_part(right, len(right.body) // 2), length=len(right.body))
    handler.wfile.flush()
    silent(handler, question, right)


def short(handler: Handler, question: Question, right: Answer) -> None:
    """Fewer bytes than were asked for, and it says so."""
    handler.send(_ranged(question, right, 0, -100))


def cut(handler: Handler, question: Question, right: Answer) -> None:
    """Fewer bytes than it says, then an orderly end."""
    handler.send(_part(right, len(right.body) // 2), length=len(right.body))
    handler.close_connection = True


def long(handler: Handler, question: Question, right: Answer) -> None:
    """More bytes than were asked for, and it says so."""
    handler.send(Answer(right.status, right.body + b"x" * 100, right.headers))


def duplicated(handler: Handler, question: Question, right: Answer) -> None:
    """The range twice, in chunks, so that no length contradicts it."""
    handler.send_response(right.status)
    for name, value in {**right.headers, "Transfer-Encoding": "chunked"}.items():
        handler.send_header(name, value)
    handler.end_headers()
    for _ in range(2):
        handler.wfile.write(b"%x\r\n%b\r\n" % (len(right.body), right.body))
    handler.wfile.write(b"0\r\n\r\n")


def other_range(handler: Handler, question: Question, right: Answer) -> None:
    """As many bytes, but others, and it says so."""
    handler.send(_ranged(question, right, -1, -1) if question.span and question.span[0] else _shifted(question, right))


def whole_object(handler: Handler, question: Question, right: Answer) -> None:
    """More than the object in one answer, as a store that ignores ranges and has a newer, longer object."""
    headers = {name: value for name, value in right.headers.items() if name != "Content-Range"}
    handler.send(Answer(200, question.whole + b"tail", headers))


def other_version(handler: Handler, question: Question, right: Answer) -> None:
    """Another version, as a store that ignores conditions."""
    body = bytes(reversed(right.body))
    handler.send(Answer(right.status, body, {**right.headers, "ETag": '"another"'}))


def html_page(handler: Handler, question: Question, right: Answer) -> None:
    handler.send(Answer(200, PAGE, {"Content-Type": "text/html"}))


def error_document(handler: Handler, question: Question, right: Answer) -> None:
    """An error of S3 whose status says that all is well."""
    document = error(200, "InternalError")
    handler.send(Answer(200, document.body, {**right.headers, **document.headers}))


def padded_page(handler: Handler, question: Question, right: Answer) -> None:
    """A page that is exactly as long as the range, with status 200 and the object's own headers."""
    headers = {name: value for name, value in right.headers.items() if name not in ("Content-Range", "ETag")}
    handler.send(Answer(200, PAGE.ljust(len(right.body)), {**headers, "Content-Type": "text/html"}))


def reset(handler: Handler, question: Question, right: Answer) -> None:
    handler.send(_part(right, len(right.body) // 2), length=len(right.body))
    handler.reset()


def server_error(handler: Handler, question: Question, right: Answer) -> None:
    handler.send(error(500, "InternalError"))


def _part(right: Answer, length: int) -> Answer:
    return Answer(right.status, right.body[:length], right.headers)


def _ranged(question: Question, right: Answer, move_start: int, move_end: int) -> Answer:
    assert question.span
    start, end = question.span[0] + move_start, question.span[1] + move_end
    span = f"bytes {start}-{end - 1}/{len(question.whole)}"
    return Answer(206, question.whole[start:end], {**right.headers, "Content-Range": span})


def _shifted(question: Question, right: Answer) -> Answer:
    return _ranged(question, right, 1, 0)


# A store that answers with another version is no broken answer: that is `StaleVersionError`, tried elsewhere.
WRONG: dict[str, Fault] = {
    each.__name__: each
    for each in (
        *(short, cut, long, duplicated, other_range, whole_object, html_page, error_document, padded_page),
        *(reset, server_error, silent, silent_after_half),
    )
}
