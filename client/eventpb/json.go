package eventpb

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/provledger/provledger/client/lineage"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// ParseJSON reads one event. Errors name the line and column, or, as a *lineage.FieldError, the field.
func ParseJSON(b []byte) (*lineage.Event, error) {
	var m ledgerv1.Event
	if err := protojson.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("event JSON: %w", plain(err))
	}
	return ToEvent(&m)
}

// plain strips what protobuf-go puts before its messages: a prefix that ends in a space or, at random by build, a no-break space.
func plain(err error) error {
	_, text, ok := strings.Cut(err.Error(), "proto:")
	if !ok {
		return err
	}
	text = strings.ReplaceAll(text, "\u00a0", " ")
	return errors.New(strings.TrimSpace(text))
}

// MarshalJSON writes one event as indented JSON that ends in a line feed. The same event gives the same bytes: protobuf-go adds random
// spaces on purpose, so its output is laid out again.
func MarshalJSON(e *lineage.Event) ([]byte, error) {
	raw, err := protojson.Marshal(FromEvent(e))
	if err != nil {
		return nil, fmt.Errorf("event JSON: %w", plain(err))
	}
	var out bytes.Buffer
	if err := json.Indent(&out, raw, "", "  "); err != nil {
		return nil, fmt.Errorf("event JSON: %w", err)
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}
