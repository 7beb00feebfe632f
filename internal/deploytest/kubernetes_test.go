package deploytest

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const stateful = "provledger"

// The manifests name each other, and ledgerd takes what the pods are given.
func TestKubernetesManifests(t *testing.T) {
	all := documents(t, "kubernetes/provledger.yaml")
	for _, o := range all {
		if o.text("apiVersion") == "" || o.text("kind") == "" || o.text("metadata", "name") == "" {
			t.Errorf("an object without apiVersion, kind or name: %v", o)
		}
		if o.text("kind") != "Namespace" && o.text("metadata", "namespace") != "provledger" {
			t.Errorf("%s is in namespace %q", o.text("kind"), o.text("metadata", "namespace"))
		}
	}
	set := kind(t, all, "StatefulSet", stateful)
	headless := kind(t, all, "Service", set.text("spec", "serviceName"))
	if headless.text("spec", "clusterIP") != "None" || headless.text("spec", "publishNotReadyAddresses") != "true" {
		t.Error("nodes have no names before they are ready, which is when they need each other")
	}
	if set.text("spec", "podManagementPolicy") != "Parallel" || set.text("spec", "replicas") != "3" {
		t.Error("nodes that start one by one, each when the one before is ready, never found a cluster")
	}
	if kind(t, all, "PodDisruptionBudget", stateful).text("spec", "maxUnavailable") != "1" {
		t.Error("a drain may take more than one node")
	}
	// Everything selects the pods by their labels.
	labels := set.at("spec", "template", "metadata", "labels").(map[string]any)
	for name, selector := range map[string]any{
		"StatefulSet": set.at("spec", "selector", "matchLabels"), "headless Service": headless.at("spec", "selector"),
		"Service":             kind(t, all, "Service", "provledger").at("spec", "selector"),
		"PodDisruptionBudget": kind(t, all, "PodDisruptionBudget", stateful).at("spec", "selector", "matchLabels"),
		"NetworkPolicy":       kind(t, all, "NetworkPolicy", "provledger").at("spec", "podSelector", "matchLabels"),
	} {
		want, _ := selector.(map[string]any)
		if len(want) == 0 {
			t.Errorf("%s selects everything", name)
		}
		for k, v := range want {
			if labels[k] != v {
				t.Errorf("%s selects %s=%v, pods have %v", name, k, v, labels[k])
			}
		}
	}
}

// TestKubernetesPod has ledgerd load what a pod gives it and compares the rest of the pod with that.
func TestKubernetesPod(t *testing.T) {
	all := documents(t, "kubernetes/provledger.yaml")
	set := kind(t, all, "StatefulSet", stateful)
	pod := object(set.at("spec", "template", "spec").(map[string]any))
	container := object(pod.at("containers", "name=ledgerd").(map[string]any))
	file := filepath.Join(t.TempDir(), "ledgerd.yaml")
	if err := os.WriteFile(file, []byte(kind(t, all, "ConfigMap", "provledger").text("data", "ledgerd.yaml")), 0o600); err != nil {
		t.Fatal(err)
	}
	cert, key := pair(t, "provledger.provledger.svc")
	flags := known()
	var c object
	for _, name := range []string{"provledger-0", "provledger-1", "provledger-2"} {
		var args []string
		for _, a := range container.texts("args") {
			if f, _, _ := strings.Cut(a, "="); !flags[f] {
				t.Errorf("ledgerd has no %s", f)
			}
			a = strings.ReplaceAll(a, "$(POD_NAME)", name)
			if strings.HasPrefix(a, "--config=") {
				if a != "--config="+mountOf(t, container, "config")+"/ledgerd.yaml" {
					t.Errorf("%s is not where the ConfigMap is mounted", a)
				}
				a = "--config=" + file
			}
			args = append(args, a)
		}
		c = inForce(t, nil, append(args, "--tls-cert", cert, "--tls-key", key)...)
		if !slices.Contains(c.texts("members"), c.text("advertise-peer")) {
			t.Errorf("%s advertises %s, which is not among %q", name, c.text("advertise-peer"), c.texts("members"))
		}
		host, _, err := net.SplitHostPort(c.text("advertise-peer"))
		if want := name + "." + set.text("spec", "serviceName") + "."; err != nil || !strings.HasPrefix(host, want) {
			t.Errorf("%s advertises %s, the headless service gives it %s...", name, host, want)
		}
	}
	for name, setting := range map[string]string{"grpc": "grpc-address", "http": "http-address", "peer": "peer-address"} {
		if got := container.text("ports", "name="+name, "containerPort"); got != port(t, c.text(setting)) {
			t.Errorf("the port %s is %s, ledgerd listens on %s", name, got, c.text(setting))
		}
	}
	// Probes ask what the HTTP port has (TestRunningNode asks it), as it speaks.
	for probe, path := range map[string]string{"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"} {
		if container.text(probe, "httpGet", "path") != path || container.text(probe, "httpGet", "port") != "http" || container.text(probe, "httpGet", "scheme") != "HTTPS" {
			t.Errorf("%s asks for %v, want %s over https", probe, container.at(probe, "httpGet"), path)
		}
	}
	drain, err := time.ParseDuration(c.text("shutdown-timeout"))
	if err != nil {
		t.Fatal(err)
	}
	if grace := seconds(t, pod.text("terminationGracePeriodSeconds")); grace < drain+flush {
		t.Errorf("a pod is killed after %v, before draining (%v) and flushing (%v) are over", grace, drain, flush)
	}
	// Each mount has a volume, and each path in the settings lies in a mount.
	for _, v := range container.list("volumeMounts") {
		name := object(v.(map[string]any)).text("name")
		if pod.at("volumes", "name="+name) == nil && set.at("spec", "volumeClaimTemplates", "0", "metadata", "name") != name {
			t.Errorf("%s is mounted and is no volume", name)
		}
	}
	for _, path := range []string{c.text("data"), c.text("peer-cert"), c.text("peer-key"), c.text("peer-ca"), c.text("secret-file")} {
		if !slices.ContainsFunc(container.list("volumeMounts"), func(v any) bool {
			return strings.HasPrefix(path, object(v.(map[string]any)).text("mountPath")+"/")
		}) {
			t.Errorf("%s lies in no volume", path)
		}
	}
	for _, volume := range []string{"peer-tls", "api-tls", "secret"} {
		// YAML 1.1 octal, as Kubernetes reads it.
		if mode := pod.text("volumes", "name="+volume, "secret", "defaultMode"); mode != "0440" && mode != "288" {
			t.Errorf("the files of %s have mode %s, want 0440", volume, mode)
		}
	}
	checkSecurity(t, pod, container)
}

func mountOf(t *testing.T, container object, volume string) string {
	t.Helper()
	path := container.text("volumeMounts", "name="+volume, "mountPath")
	if path == "" {
		t.Fatalf("%s is not mounted", volume)
	}
	return path
}

func checkSecurity(t *testing.T, pod, container object) {
	t.Helper()
	for path, want := range map[string]string{
		"securityContext.runAsNonRoot": "true", "securityContext.runAsUser": "65532", "securityContext.fsGroup": "65532", "securityContext.seccompProfile.type": "RuntimeDefault",
		"automountServiceAccountToken": "false",
	} {
		if got := pod.text(strings.Split(path, ".")...); got != want {
			t.Errorf("the pod's %s is %q, want %s", path, got, want)
		}
	}
	for path, want := range map[string]string{"allowPrivilegeEscalation": "false", "readOnlyRootFilesystem": "true", "capabilities.drop.0": "ALL"} {
		if got := container.text(append([]string{"securityContext"}, strings.Split(path, ".")...)...); got != want {
			t.Errorf("the container's %s is %q, want %s", path, got, want)
		}
	}
	if container.text("resources", "limits", "memory") == "" || container.at("resources", "limits", "cpu") != nil {
		t.Error("memory has to be bounded, and processor time not")
	}
}

// The certificates name what the nodes advertise, and land where the pods look for them.
func TestKubernetesCertificates(t *testing.T) {
	all := documents(t, "kubernetes/provledger.yaml")
	certificates := documents(t, "kubernetes/certificates.yaml")
	set := kind(t, all, "StatefulSet", stateful)
	peer, api := kind(t, certificates, "Certificate", "provledger-peer-tls"), kind(t, certificates, "Certificate", "provledger-api-tls")
	config := kind(t, all, "ConfigMap", "provledger").text("data", "ledgerd.yaml")
	for _, host := range peer.texts("spec", "dnsNames") {
		if !strings.Contains(config, host+":7602\n") {
			t.Errorf("the peer certificate is for %s, which is no member", host)
		}
	}
	if n := len(peer.texts("spec", "dnsNames")); n != strings.Count(config, ":7602\n")-1 { // one is peer-address
		t.Errorf("the peer certificate has %d names", n)
	}
	for _, usage := range []string{"server auth", "client auth"} {
		if !slices.Contains(peer.texts("spec", "usages"), usage) {
			t.Errorf("the peer certificate is not for %s", usage)
		}
	}
	for volume, c := range map[string]object{"peer-tls": peer, "api-tls": api} {
		if got := set.text("spec", "template", "spec", "volumes", "name="+volume, "secret", "secretName"); got != c.text("spec", "secretName") {
			t.Errorf("%s is mounted from Secret %s, the certificate is in %s", volume, got, c.text("spec", "secretName"))
		}
		issuer := kind(t, certificates, "Issuer", c.text("spec", "issuerRef", "name"))
		if ca := issuer.text("spec", "ca", "secretName"); ca != "" && kind(t, certificates, "Certificate", ca).text("spec", "isCA") != "true" {
			t.Errorf("%s is issued by what is no CA", volume)
		}
	}
	// cert-manager writes ca.crt, tls.crt and tls.key.
	mounts := object(set.at("spec", "template", "spec", "containers", "name=ledgerd").(map[string]any))
	for _, want := range []string{
		"peer-ca: " + mountOf(t, mounts, "peer-tls") + "/ca.crt\n", "peer-cert: " + mountOf(t, mounts, "peer-tls") + "/tls.crt\n", "peer-key: " + mountOf(t, mounts, "peer-tls") + "/tls.key\n",
		"tls-cert: " + mountOf(t, mounts, "api-tls") + "/tls.crt\n", "tls-key: " + mountOf(t, mounts, "api-tls") + "/tls.key\n", "secret-file: " + mountOf(t, mounts, "secret") + "/secret\n",
	} {
		if !strings.Contains(config, want) {
			t.Errorf("the configuration has no %q", want)
		}
	}
}
