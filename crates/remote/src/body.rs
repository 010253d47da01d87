//! Bodies on their way: content out of data files, and both directions held to their pace.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::Stream;
use hyper::body::{Body, Frame, SizeHint};
use s3s::StdError;
use s3s::stream::{ByteStream, RemainingLength};
use tokio::time::{Instant, Sleep};

use crate::counters::Counters;
use crate::object::Segment;
use crate::pace::Pace;

/// Content of an object: whole mapped runs at once, or pieces that are read.
pub struct Content {
    segments: VecDeque<Segment>,
}

impl Content {
    /// The content that `segments` name, in order.
    pub fn new(segments: Vec<Segment>) -> Self {
        Self { segments: segments.into() }
    }
}

impl Stream for Content {
    type Item = Result<Bytes, StdError>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(segment) = self.segments.front_mut() else { return Poll::Ready(None) };
        let data = match segment.file.read(segment.offset, segment.length) {
            Ok(data) => data,
            Err(error) => return Poll::Ready(Some(Err(error.into()))),
        };
        segment.offset += data.len() as u64;
        segment.length -= data.len() as u64;
        if segment.length == 0 {
            self.segments.pop_front();
        }
        Poll::Ready(Some(Ok(data)))
    }
}

impl ByteStream for Content {
    fn remaining_length(&self) -> RemainingLength {
        let length: u64 = self.segments.iter().map(|segment| segment.length).sum();
        RemainingLength::new_exact(usize::try_from(length).unwrap_or(usize::MAX))
    }
}

/// Which way a body goes: says what is counted.
#[derive(Clone, Copy)]
pub enum Direction {
    /// To the client.
    Out,
    /// From the client.
    In,
}

/// A body that passes frame by frame, each when its last byte would have passed the links.
pub struct Paced<B> {
    inner: Pin<Box<B>>,
    pace: Pace,
    counters: Arc<Counters>,
    direction: Direction,
    /// What was taken from `inner` and not yet cut into frames.
    rest: Bytes,
    /// The frame under way, and what it waits for.
    frame: Option<Bytes>,
    passes: Option<Pin<Box<Sleep>>>,
    begun: bool,
}

impl<B> Paced<B> {
    /// Holds `inner` to `pace`.
    pub fn new(inner: B, pace: Pace, counters: Arc<Counters>, direction: Direction) -> Self {
        let (inner, rest) = (Box::pin(inner), Bytes::new());
        Self { inner, pace, counters, direction, rest, frame: None, passes: None, begun: false }
    }

    fn begin_frame(&mut self) {
        let now = Instant::now();
        if !self.begun {
            self.begun = true;
            self.pace.begin(now);
        }
        let frame = self.rest.split_to(self.rest.len().min(self.pace.frame_bytes()));
        self.passes = self.pace.take(frame.len(), now).map(|at| Box::pin(tokio::time::sleep_until(at)));
        self.frame = Some(frame);
    }

    fn end_frame(&mut self, frame: Bytes) -> Frame<Bytes> {
        let counter = match self.direction {
            Direction::Out => &self.counters.bytes_out,
            Direction::In => &self.counters.bytes_in,
        };
        counter.fetch_add(frame.len() as u64, Ordering::Relaxed);
        Frame::data(frame)
    }
}

impl<B: Body<Data = Bytes>> Body for Paced<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        loop {
            if let Some(passes) = &mut self.passes {
                ready!(passes.as_mut().poll(context));
                self.passes = None;
            }
            if let Some(frame) = self.frame.take() {
                return Poll::Ready(Some(Ok(self.end_frame(frame))));
            }
            if !self.rest.is_empty() {
                self.begin_frame();
                continue;
            }
            match ready!(self.inner.as_mut().poll_frame(context)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.frame.is_none() && self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let held = (self.rest.len() + self.frame.as_ref().map_or(0, Bytes::len)) as u64;
        let inner = self.inner.size_hint();
        let mut hint = SizeHint::new();
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + held);
        }
        hint.set_lower(inner.lower() + held);
        hint
    }
}
