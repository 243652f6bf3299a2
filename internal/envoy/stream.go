package envoy

import (
	"encoding/json"
	"errors"
	"fmt"
)

// maxElement bounds one element of a streamed answer. A cluster of /clusters
// takes about 1.2 KB a host, an element of /certs about 750 B.
const maxElement = 1 << 20

var errNotAnObject = errors.New("the answer is not a JSON object")

// errStop ends eachField early.
var errStop = errors.New("stop")

// eachField walks a JSON object and calls value for each of its fields; value
// must read exactly the field's value, or return errStop.
func eachField(dec *json.Decoder, value func(name string) error) error {
	token, err := dec.Token()
	if err != nil {
		return err
	}
	if token != json.Delim('{') {
		return errNotAnObject
	}
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return err
		}
		name, ok := token.(string)
		if !ok {
			return errNotAnObject
		}
		if err := value(name); errors.Is(err, errStop) {
			return nil
		} else if err != nil {
			return err
		}
	}
	_, err = dec.Token()
	return err
}

// skipValue reads over one JSON value without holding more than one token.
func skipValue(dec *json.Decoder, body *boundedReader) error {
	for depth := 0; ; {
		token, err := dec.Token()
		if err != nil {
			return err
		}
		switch token {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth == 0 {
			return nil
		}
		body.allow(maxElement)
	}
}

// count is a number that Envoy prints as a string ("value":"2"), leaves out
// when zero, or, in other places, prints as a number.
type count uint64

func (c *count) UnmarshalJSON(data []byte) error {
	if len(data) >= 2 && data[0] == '"' {
		data = data[1 : len(data)-1]
	}
	var n json.Number
	if err := json.Unmarshal(data, &n); err != nil {
		return err
	}
	var v uint64
	if _, err := fmt.Sscan(n.String(), &v); err != nil {
		return fmt.Errorf("%.40q is not a count", n)
	}
	*c = count(v)
	return nil
}
