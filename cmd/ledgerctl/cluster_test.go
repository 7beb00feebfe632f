package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/provledger/provledger/client"
	ledgerv1 "github.com/provledger/provledger/proto/ledger/v1"
)

// Members of the cluster that the verbs are shown. The first two ids agree in more than eight digits.
const (
	idA = "0198c0de-7e1f-7aaa-8000-00000000000a"
	idB = "0198c0de-7e1f-7bbb-8000-00000000000b"
	idC = "0198c0ff-7e1f-7ccc-8000-00000000000c"
)

// scripted is a cluster that answers as a test says and writes down what it was asked.
type scripted struct {
	ledgerv1.UnimplementedClusterServiceServer
	cluster *ledgerv1.Cluster
	err     error
	asked   []string
}

func (s *scripted) note(format string, args ...any) error {
	s.asked = append(s.asked, fmt.Sprintf(format, args...))
	return s.err
}

func (s *scripted) GetCluster(context.Context, *ledgerv1.GetClusterRequest) (*ledgerv1.GetClusterResponse, error) {
	return &ledgerv1.GetClusterResponse{Cluster: s.cluster}, nil
}

func (s *scripted) AddMember(_ context.Context, r *ledgerv1.AddMemberRequest) (*ledgerv1.AddMemberResponse, error) {
	return &ledgerv1.AddMemberResponse{Member: &ledgerv1.Member{NodeId: idC, Address: r.Address}}, s.note("add %s %v", r.Address, r.NonVoter)
}

func (s *scripted) PromoteMember(_ context.Context, r *ledgerv1.PromoteMemberRequest) (*ledgerv1.PromoteMemberResponse, error) {
	return &ledgerv1.PromoteMemberResponse{}, s.note("promote %s", r.NodeId)
}

func (s *scripted) DemoteMember(_ context.Context, r *ledgerv1.DemoteMemberRequest) (*ledgerv1.DemoteMemberResponse, error) {
	return &ledgerv1.DemoteMemberResponse{}, s.note("demote %s %v", r.NodeId, r.Force)
}

func (s *scripted) RemoveMember(_ context.Context, r *ledgerv1.RemoveMemberRequest) (*ledgerv1.RemoveMemberResponse, error) {
	return &ledgerv1.RemoveMemberResponse{}, s.note("remove %s %v", r.NodeId, r.Force)
}

func (s *scripted) TransferLeadership(_ context.Context, r *ledgerv1.TransferLeadershipRequest) (*ledgerv1.TransferLeadershipResponse, error) {
	return &ledgerv1.TransferLeadershipResponse{}, s.note("transfer %s", r.NodeId)
}

func (s *scripted) ReplaceMember(r *ledgerv1.ReplaceMemberRequest, stream grpc.ServerStreamingServer[ledgerv1.ReplaceMemberResponse]) error {
	if err := s.note("replace %s %s %v", r.NodeId, r.Address, r.Force); err != nil {
		return err
	}
	for i, text := range []string{"added the new one", "removed the \x1b[31mold one", "in place"} {
		if err := stream.Send(&ledgerv1.ReplaceMemberResponse{Progress: text, Done: i == 2}); err != nil {
			return err
		}
	}
	return nil
}

func healthy() *ledgerv1.Cluster {
	return &ledgerv1.Cluster{
		ClusterId: "11111111-2222-4333-8444-555555555555", AnsweredBy: idB, LeaderId: idA, Term: 7, ConfigurationIndex: 42, CommandVersion: 2,
		Members: []*ledgerv1.Member{
			{NodeId: idA, Address: "a:7700", ApiAddress: "a:7600", Voter: true, Leader: true, Reachable: true, State: "serving", AppliedIndex: 900, Version: "v1.2.3", MaxCommandVersion: 2},
			{NodeId: idB, Address: "b:7700", ApiAddress: "b:7600", Voter: true, Reachable: true, State: "serving", AppliedIndex: 898, LagEntries: 2, Version: "v1.2.3"},
			{NodeId: idC, Address: "c:7700", Reachable: true, State: "catching up", LagEntries: 5000, Version: "v1.2.3", BecomesVoter: true, ClockOffsetUs: -1_250_000},
		},
	}
}

func ailing() *ledgerv1.Cluster {
	c := healthy()
	c.Members[1] = &ledgerv1.Member{NodeId: idB, Address: "b:7700", Voter: true, Error: "connection refused"}
	c.LeaderId, c.AnsweredBy, c.Members[0].Leader = "", idA, false
	c.Warnings = []string{"There is no leader: nothing is recorded until one is elected.", "Node \x1b[2J does not answer."}
	return c
}

// ledgerctl runs a verb against the scripted cluster.
func (s *scripted) ledgerctl(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	ledgerv1.RegisterClusterServiceServer(server, s)
	go func() { _ = server.Serve(lis) }()
	defer server.Stop()
	var out, errs bytes.Buffer
	args = append(args, "--ledger", lis.Addr().String(), "--state-dir", t.TempDir(), "--timeout", "2s")
	code = run(t.Context(), args, strings.NewReader(""), &out, &errs)
	return code, out.String(), strings.ReplaceAll(errs.String(), lis.Addr().String(), "ADDRESS")
}

// golden compares with a file; -update writes it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", "cluster", name)
	if *updateScripts {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || got != string(want) {
		t.Errorf("%s (%v): got\n%s\nwant\n%s", path, err, got, want)
	}
}

func TestClusterStatus(t *testing.T) {
	for name, x := range map[string]struct {
		cluster *ledgerv1.Cluster
		code    int
	}{"healthy": {healthy(), exitOK}, "ailing": {ailing(), exitNotVerified}} {
		for _, format := range []string{"table", "json"} {
			s := &scripted{cluster: x.cluster}
			code, stdout, stderr := s.ledgerctl(t, "cluster", "status", "-o", format)
			if code != x.code || stderr != "" {
				t.Errorf("%s: exit code %d, %q", name, code, stderr)
			}
			if strings.ContainsRune(stdout, '\x1b') {
				t.Errorf("%s: text from a server reaches the terminal", name)
			}
			golden(t, name+"."+format, stdout)
		}
	}
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"cluster", "status", "--ledger", "127.0.0.1:1", "--timeout", "200ms", "--state-dir", t.TempDir()}, strings.NewReader(""), &out, &errs); code != exitUnknown {
		t.Errorf("nobody there: exit code %d, %s", code, errs.String())
	}
}

// What the verbs ask for, and what they say.
func TestClusterVerbs(t *testing.T) {
	for name, x := range map[string]struct {
		args  string
		code  int
		asked string
		says  string
	}{
		"add":                    {"add d:7700", exitOK, "add d:7700 false", "added " + idC + " at d:7700; it votes once it has caught up\n"},
		"add a non-voter":        {"add --non-voter d:7700", exitOK, "add d:7700 true", "added " + idC + " at d:7700; it does not vote\n"},
		"promote by prefix":      {"promote 0198c0ff", exitOK, "promote " + idC, idC + " votes now\n"},
		"promote in capitals":    {"promote 0198C0FF", exitOK, "promote " + idC, idC + " votes now\n"},
		"demote by address":      {"demote b:7700", exitOK, "demote " + idB + " false", idB + " does not vote any more\n"},
		"demote by API address":  {"demote b:7600 --force", exitOK, "demote " + idB + " true", idB + " does not vote any more\n"},
		"remove":                 {"remove b:7700 --yes", exitOK, "remove " + idB + " false", "removed " + idB + "\n"},
		"remove who is gone":     {"remove 0198c0de-0000-7000-8000-000000000000 --yes --force", exitOK, "remove 0198c0de-0000-7000-8000-000000000000 true", "removed 0198c0de-0000-7000-8000-000000000000\n"},
		"replace":                {"replace b:7700 d:7700 --yes", exitOK, "replace " + idB + " d:7700 false", "added the new one\nremoved the \uFFFD[31mold one\nin place\n"},
		"transfer":               {"transfer", exitOK, "transfer ", "leadership was handed over\n"},
		"transfer to one":        {"transfer b:7700", exitOK, "transfer " + idB, idB + " leads now\n"},
		"an ambiguous prefix":    {"promote 0198c0de", exitUnknown, "", idA + " at a:7700"},
		"nobody":                 {"demote z:7700", exitUsage, "", "is no member; members are"},
		"an empty name":          {"promote '' ", exitUsage, "", "is no member"},
		"remove unconfirmed":     {"remove b:7700", exitUsage, "", "confirm with --yes"},
		"replace unconfirmed":    {"replace b:7700 d:7700", exitUsage, "", "confirm with --yes"},
		"too many to transfer":   {"transfer a:7700 b:7700", exitUsage, "", "transfer takes"},
		"no verb":                {"promote", exitUsage, "", "promote takes one node"},
		"add in JSON":            {"add d:7700 -o json", exitOK, "add d:7700 false", `"nodeId": "` + idC + `"`},
		"replace in JSON":        {"replace b:7700 d:7700 --yes -o json", exitOK, "replace " + idB + " d:7700 false", `"steps": [`},
		"a verb that is not one": {"expel b:7700", exitUsage, "", ""},
	} {
		s := &scripted{cluster: healthy()}
		args := strings.Fields(x.args)
		for i := range args {
			args[i] = strings.Trim(args[i], "'")
		}
		code, stdout, stderr := s.ledgerctl(t, append([]string{"cluster"}, args...)...)
		if asked := strings.Join(s.asked, "; "); code != x.code || asked != x.asked || !strings.Contains(stdout+stderr, x.says) {
			t.Errorf("%s: exit code %d, asked %q, said %q; want %d, %q, %q", name, code, asked, stdout+stderr, x.code, x.asked, x.says)
		}
	}
	refused, err := status.New(codes.FailedPrecondition, "refused: only 1 of 2 voters answers; use --force").WithDetails(&errdetails.ErrorInfo{Domain: "provledger", Reason: "REFUSED"})
	if err != nil {
		t.Fatal(err)
	}
	s := &scripted{cluster: healthy(), err: refused.Err()}
	if code, _, stderr := s.ledgerctl(t, "cluster", "remove", "b:7700", "--yes"); code != exitUnknown || !strings.Contains(stderr, "only 1 of 2 voters answers") || len(s.asked) != 1 {
		t.Errorf("refused: exit code %d, %q, asked %q", code, stderr, s.asked)
	}
}

func TestMemberID(t *testing.T) {
	x := &client.Cluster{Members: []client.Member{{ID: idA, Address: "a:7700"}, {ID: idB, Address: "b:7700"}}}
	if id, err := memberID(x, strings.ToUpper(idC)); err != nil || id != idC {
		t.Errorf("a whole id: %s, %v", id, err)
	}
	var e *exitError
	one := &client.Cluster{Members: x.Members[:1]}
	if id, err := memberID(one, idA[:minIDPrefix]); err != nil || id != idA {
		t.Errorf("the beginning of an id: %s, %v", id, err)
	}
	if _, err := memberID(one, idA[:minIDPrefix-1]); !errors.As(err, &e) || e.code != exitUsage {
		t.Errorf("too little of an id: %v", err)
	}
	if _, err := memberID(x, "0198"); !errors.As(err, &e) || e.code != exitUnknown || !strings.Contains(err.Error(), idB) {
		t.Errorf("ambiguous: %v", err)
	}
}
