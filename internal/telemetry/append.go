package telemetry

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/provledger/provledger/internal/sequencer"
)

// Append returns what makes spans of an append's passage through the sequencer and raft, for sequencer.Options.Passed; nil when there are
// no traces. The spans are made after the fact from times that were noted on the way, so that nothing on the way of a
// command that many requests share waits for a tracer. Those of a request whose trace is not sampled are not made at all.
//
// The span "append" is the child of the call's, and has up to three of its own: "queue" until it stands in a command, "raft" until that
// is committed and applied here, "reply" until its caller runs again. A request that was composed several times has one "queue" for all
// but the last.
func (t *Telemetry) Append() func(context.Context, sequencer.Passage) {
	if t == nil {
		return nil
	}
	return t.passed
}

func (t *Telemetry) passed(ctx context.Context, p sequencer.Passage) {
	if !trace.SpanFromContext(ctx).IsRecording() {
		return
	}
	ctx, span := t.tracer.Start(ctx, "append", trace.WithTimestamp(p.Queued), trace.WithAttributes(
		attribute.Int64("provledger.log", int64(p.Log)), attribute.Int("provledger.events", p.Events), attribute.Int("provledger.attempts", p.Attempts)))
	if p.Err != nil {
		span.SetStatus(codes.Error, p.Err.Error())
	}
	stage := func(name string, from, to time.Time) {
		if !from.IsZero() && !to.IsZero() {
			_, child := t.tracer.Start(ctx, name, trace.WithTimestamp(from))
			child.End(trace.WithTimestamp(to))
		}
	}
	stage("queue", p.Queued, p.Composed)
	stage("raft", p.Composed, p.Decided)
	stage("reply", p.Decided, p.Done)
	span.End(trace.WithTimestamp(p.Done))
}
